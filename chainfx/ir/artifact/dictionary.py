"""What manifests usually say, for deflate to refer to: a part of the coded format, fixed for each version of it."""

__all__ = ["DICTIONARY"]

_TEXTS = (
    '"torch.nn.modules.batchnorm:BatchNorm2d","options":{"num_features":16,"eps":1e-05,"momentum":0.1,"affine":true,'
    '"track_running_stats":true}}',
    '"torch.nn.modules.pooling:AdaptiveAvgPool2d","options":{"output_size":1}}',
    '"torch.nn.modules.linear:Identity","options":{}}',
    '"torch.nn.modules.dropout:Dropout","options":{"p":0.5,"inplace":false}}',
    '"torch.nn.modules.pooling:MaxPool2d","options":{"kernel_size":2,"stride":2,"padding":0,"dilation":1,'
    '"return_indices":false,"ceil_mode":false}}',
    '"torch.nn.modules.flatten:Flatten","options":{"start_dim":1,"end_dim":-1}}',
    '["exit1","call_function","chainfx:exit_point",[{"node":"linear"},"exit1",0.9,"max-softmax"],{}],',
    '["add","call_function","_operator:add",[{"node":"relu"},{"node":"bn2"}],{}],',
    '["relu","call_function","torch.nn.functional:relu",[{"node":"conv1"}],{"inplace":false}],',
    '["quantize_activation","call_function","chainfx:quantize_activation",[{"node":"relu"},{"node":"quantize_relu_clip"'
    "},8,false],{}],",
    '["dequantize_weight","call_function","chainfx:dequantize_weight",[{"node":"conv1_codes"},{"node":"conv1_scale"},4,'
    '"uniform"],{}],',
    '["conv2d","call_function","torch.nn.functional:conv2d",[{"node":"x"},{"node":"coded_weight"},{"node":"conv1_bias"},'
    '{"tuple":[1,1]},{"tuple":[0,0]},{"tuple":[1,1]},1],{}],',
    '["features_0_weight_codes","get_attr","features.0.weight_codes",[],{}],["features_0_weight_codebook","get_attr",'
    '"features.0.weight_codebook",[],{}],["look_up_1","call_function","chainfx:look_up",[{"node":"features_0_weight_codes'
    '"},{"node":"features_0_weight_codebook"}],{}],["fc1_weight_mask","get_attr","fc1.weight_mask",[],{}],',
    '["mask_weight_1","call_function","chainfx:mask_weight",[{"node":"look_up_1"},{"node":"fc1_weight_mask"},'
    '"unstructured"],{}],["coded_weight_1","call_function","chainfx:coded_weight",[{"node":"mask_weight_1"},"static"],{}]'
    ',["fc1_bias","get_attr","fc1.bias",[],{}],["fc1","call_function","torch._C._nn:linear",[{"node":"flatten"},{"node":'
    '"coded_weight_1"},{"node":"fc1_bias"}],{}],["relu1","call_module","relu1",[{"node":"fc1"}],{}],',
    '["output","output","output",[{"node":"fc3"}],{}]],"modules":{"relu1":{"class":"torch.nn.modules.activation:ReLU",'
    '"options":{"dict":[["inplace",false]]}},"flatten":{"class":"torch.nn.modules.flatten:Flatten","options":{"dict":[['
    '"start_dim",1],["end_dim",-1]]}}},"tensors":[["conv1.bias","parameter",true,"float32",[20]],["fc1.weight_codes",'
    '"buffer",false,"uint8",[300,784],"fc1.weight_mask"],["fc1.weight_mask","buffer",false,"bool",[300,784]],'
    '["fc1.weight_codebook","parameter",true,"float32",[32]],["fc1.codes","buffer",false,"uint8",[64,64,3,3]],'
    '["fc1.scale","buffer",false,"float32",[64,1,1,1]],["bn1.running_mean","buffer",false,"float32",[16]],'
    '["bn1.num_batches_tracked","buffer",false,"int64",[]]],"extra":{"signature":',
    '{"class_name":"GraphModule","training":false,"nodes":[["x","placeholder","x",[],{}],["flatten","call_module",'
    '"flatten",[{"node":"x"}],{}],["conv1_weight","get_attr","conv1.weight",[],{}],',
)

DICTIONARY = "".join(_TEXTS).encode()
