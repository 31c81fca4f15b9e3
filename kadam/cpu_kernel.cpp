// One step of k-Adam on a CPU: every block of elements goes through all stages while it is in the cache,
// so that the memory sees each number once. The formula is that of kadam/update.py.

#include <ATen/core/Tensor.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

namespace {

constexpr int64_t kBlock = 16384;

struct Stage {
  double gamma, beta, correction, root_correction;
};

struct Span { // a piece of one tensor
  size_t tensor;
  int64_t start, size;
};

// in: the stage's input, which may be where its output goes; kNear: gamma > 1/2
template <typename T, bool kNear>
void advance(const T* in, T sign, T* out, T* __restrict m, T* __restrict v, int64_t size, const Stage& stage, T eps) {
  // m from the nearer end, as torch.lerp: exact at gamma = 0
  const T gamma = kNear ? stage.gamma - 1 : stage.gamma, beta = stage.beta, beta_rest = 1 - stage.beta;
  const T correction = 1 / stage.correction, root_correction = 1 / stage.root_correction;
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) {
    const T x = sign * in[j];
    const T new_m = (kNear ? m[j] : x) - gamma * (x - m[j]);
    const T new_v = beta * v[j] + beta_rest * x * x;
    m[j] = new_m;
    v[j] = new_v;
    const T root = std::sqrt(new_v) * root_correction + eps;
    // a second moment of zero has update zero
    out[j] = root == 0 ? T(0) : new_m * correction / root;
  }
}

template <typename T>
void run(
    at::TensorList params, at::TensorList grads, at::TensorList moments, at::ArrayRef<double> steps,
    at::ArrayRef<double> gammas, at::ArrayRef<double> betas, double lr, double weight_decay, double eps,
    bool maximize) {
  const size_t k = gammas.size(), count = params.size();
  std::vector<Span> spans;
  for (size_t i = 0; i < count; ++i)
    for (int64_t start = 0; start < params[i].numel(); start += kBlock)
      spans.push_back({i, start, std::min(kBlock, params[i].numel() - start)});
  const T sign = maximize ? -1 : 1, decay = 1 - lr * weight_decay, rate = lr;
  at::parallel_for(0, spans.size(), 4, [&](int64_t begin, int64_t end) {
    T x[kBlock];
    for (int64_t s = begin; s < end; ++s) {
      const auto [i, start, size] = spans[s];
      const T* grad = grads[i].const_data_ptr<T>() + start;
      T* param = params[i].mutable_data_ptr<T>() + start;
      for (size_t stage = 0; stage < k; ++stage) {
        const double gamma = gammas[stage], beta = betas[stage];
        const Stage numbers{gamma, beta, 1 - std::pow(gamma, steps[i]), std::sqrt(1 - std::pow(beta, steps[i]))};
        T* m = moments[(2 * stage) * count + i].mutable_data_ptr<T>() + start;
        T* v = moments[(2 * stage + 1) * count + i].mutable_data_ptr<T>() + start;
        const auto stage_advance = gamma > 0.5 ? advance<T, true> : advance<T, false>;
        stage_advance(stage == 0 ? grad : x, stage == 0 ? sign : T(1), x, m, v, size, numbers, eps);
      }
      for (int64_t j = 0; j < size; ++j) param[j] = decay * param[j] - rate * x[j];
    }
  });
}

// moments: m of stage 1 of all tensors, then v of stage 1, m of stage 2, ... All contiguous, of one size per tensor.
void step(
    at::TensorList params, at::TensorList grads, at::TensorList moments, at::ArrayRef<double> steps,
    at::ArrayRef<double> gammas, at::ArrayRef<double> betas, double lr, double weight_decay, double eps,
    bool maximize) {
  if (params[0].scalar_type() == at::kFloat)
    run<float>(params, grads, moments, steps, gammas, betas, lr, weight_decay, eps, maximize);
  else
    run<double>(params, grads, moments, steps, gammas, betas, lr, weight_decay, eps, maximize);
}

} // namespace

TORCH_LIBRARY(kadam, library) {
  library.def(
      "step(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, float[] steps, float[] gammas, float[] betas, "
      "float lr, float weight_decay, float eps, bool maximize) -> ()",
      step);
}
