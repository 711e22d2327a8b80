"""What manifests usually say, for deflate to refer to: a part of the coded format, fixed for each version of it."""

__all__ = ["DICTIONARY"]

_TEXTS = (
    '[2,"_operator:getitem",[{"node":2},{"tuple":[{"slice":[null,null,null]},{"slice":[null,null,2]}]}]],'
    '[2,"torch.nn.functional:pad",[{"node":1},{"tuple":[0,0,0,0,8,8]}],{"dict":[["mode","constant"],["value",null]]}],',
    '[2,"chainfx:exit_point",[{"node":1},"exit1",0.9,"max-softmax"]],[2,"torch:cat",[[{"node":2},{"node":1}],1]],'
    '[2,"torch.nn.functional:relu",[{"node":1}],{"dict":[["inplace",false]]}],[2,"torch:flatten",[{"node":1},1]],',
    '[2,"chainfx:quantize_activation",[{"node":2},{"node":1},8,false]],[1,"conv1.codes"],[1,"conv1.scale"],'
    '[2,"chainfx:dequantize_weight",[{"node":2},{"node":1},4,"uniform"]],',
    '[1,"stages.0.0.conv1.weight"],[2,"chainfx:coded_weight",[{"node":1},"static"]],[2,"torch:conv2d",[{"node":3},'
    '{"node":1},null,{"tuple":[1,1]},{"tuple":[1,1]},{"tuple":[1,1]},1],{"dict":[]},"stages_0_0_conv1"],'
    '[4,"stages.0.0.bn1",[{"node":1}]],[4,"stages.0.0.relu1",[{"node":1}]],[2,"_operator:add",[{"node":1},{"node":10}]],',
    '{"dict":[["num_features",16],["eps",1e-05],["momentum",0.1],["affine",true],["track_running_stats",true],'
    '["bias",true]]}},"stages.0.0.bn1":{"class":"torch.nn.modules.batchnorm:BatchNorm2d","options":',
    '"pool":{"class":"torch.nn.modules.pooling:AdaptiveAvgPool2d","options":{"dict":[["output_size",1]]}},'
    '"dropout":{"class":"torch.nn.modules.dropout:Dropout","options":{"dict":[["p",0.5],["inplace",false]]}},'
    '"identity":{"class":"torch.nn.modules.linear:Identity","options":{"dict":[]}},',
    '["layers.0.bn1.running_mean",1,[16]],["layers.0.bn1.running_var",1,[16]],["layers.0.bn1.num_batches_tracked",2,[]],'
    '["features.0.bn1.weight",0,[16]],["features.0.bn1.bias",0,[16]],[[1,0,[32]],[6,0,[64]],[12,1,[64,64,3,3]],',
    '{"class_name":"GraphModule","training":false,"nodes":[[0,"x"],[4,"flatten",[{"node":1}]],[1,"conv1.weight_mask"],'
    '[1,"conv1.weight_codes"],[1,"conv1.weight_codebook"],[2,"chainfx:look_up",[{"node":2},{"node":1}]],'
    '[2,"chainfx:mask_weight",[{"node":1},{"node":4},"unstructured"],{"dict":[]},"mask_weight_3"],'
    '[2,"chainfx:coded_weight",[{"node":1},"adaptive"]],[1,"conv1.bias_codes"],[1,"conv1.bias_codebook"],'
    '[2,"chainfx:look_up",[{"node":2},{"node":1}],{"dict":[]},"look_up_3"],[2,"chainfx:coded_weight",[{"node":4},'
    '"adaptive"]],[2,"torch:conv2d",[{"node":10},{"node":1},{"node":2},{"tuple":[1,1]},{"tuple":[0,0]},{"tuple":[1,1]},'
    '1],{"dict":[]},"conv1"],[4,"pool1",[{"node":1}]],[1,"fc1.weight_mask"],[1,"fc1.weight_codes"],'
    '[1,"fc1.weight_codebook"],[2,"chainfx:look_up",[{"node":2},{"node":1}]],[2,"chainfx:mask_weight",[{"node":1},'
    '{"node":4},"unstructured"]],[1,"fc1.bias"],[2,"chainfx:coded_weight",[{"node":2},"adaptive"]],'
    '[2,"torch._C._nn:linear",[{"node":7},{"node":1},{"node":2}],{"dict":[]},"fc1"],[4,"relu1",[{"node":1}]],'
    '[5,"output",[{"node":1}]]],"modules":{"pool1":{"class":"torch.nn.modules.pooling:MaxPool2d","options":{"dict":['
    '["kernel_size",2],["stride",2],["padding",0],["dilation",1],["return_indices",false],["ceil_mode",false]]}},'
    '"flatten":{"class":"torch.nn.modules.flatten:Flatten","options":{"dict":[["start_dim",1],["end_dim",-1]]}},'
    '"relu1":{"class":"torch.nn.modules.activation:ReLU","options":{"dict":[["inplace",false]]}}},'
    '"tensors":[[3,0,[16]],[8,2,[300,784],7],["fc1.bias",0,[10]]],"extra":{"signature":{"parameters":[{"name":"x",'
    '"given":"either","shape":[2,1,28,28],"dtype":"torch.float32","fixed":[]}],"why":""},"report":"0"},'
    '"kinds":[["parameter",true,"float32"],["buffer",false,"float32"],["buffer",false,"int64"],["buffer",false,"bool"],'
    '["buffer",false,"uint8"]]}',
)

DICTIONARY = "".join(_TEXTS).encode()
