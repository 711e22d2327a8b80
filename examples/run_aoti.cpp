// A compressed network in a C++ process, one sample at a time, with its early exits: no Python, no chainfx.
//
// The packages are what `small.export("folder", format="aoti")` writes. Build it against the torch that runs:
//
//   T=$(python -c "import torch; print(torch.__path__[0])")
//   g++ -O2 -std=c++20 run_aoti.cpp -o run_aoti -I$T/include -I$T/include/torch/csrc/api/include \
//       -L$T/lib -Wl,-rpath,$T/lib,--no-as-needed -ltorch -ltorch_cpu -lc10
//
// and run it with a file of float32 numbers, the sizes of the sample, and the packages with the thresholds of
// manifest.json between them: `run_aoti image.bin 3 32 32 -- segment0.pt2 0.9 segment1.pt2` prints the logits.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main(int count, char** words) {
  std::vector<int64_t> shape = {1};
  int at = 2;
  for (; at < count && std::string(words[at]) != "--"; ++at) shape.push_back(std::stoll(words[at]));
  auto sample = torch::empty(shape);
  std::ifstream(words[1], std::ios::binary).read(reinterpret_cast<char*>(sample.data_ptr()), sample.nbytes());

  c10::InferenceMode mode;
  std::vector<torch::Tensor> values = {sample};
  for (++at; at < count; at += 2) {
    torch::inductor::AOTIModelPackageLoader segment(words[at]);
    auto answers = segment.run(values);  // logits, confidence, and what the next segment takes; or logits alone
    bool leaves = at + 1 >= count || answers[1].item<float>() >= std::stof(words[at + 1]);
    if (leaves) {
      auto logits = answers[0].contiguous();
      for (int64_t i = 0; i < logits.numel(); ++i) std::cout << logits.data_ptr<float>()[i] << "\n";
      return 0;
    }
    values.assign(answers.begin() + 2, answers.end());
  }
}
