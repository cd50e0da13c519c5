// The inputs of permuted_divergence as its kernels read them.
#pragma once

#include "cuda/tensors.h"
#include "permuted_divergence/arguments.h"
#include "permuted_divergence/cuda/kernels.h"

namespace mcr {
namespace cuda {

// The problem on the device, with the memory it points to.
class PermutedDivergenceInputs {
 public:
  PermutedDivergenceInputs(const PermutedDivergenceArguments& arguments, bool want_grad)
      : like_(arguments.contributions) {
    const Tensor& x = arguments.contributions;
    arguments.check();
    STD_TORCH_CHECK(arguments.subsets.size() <= kMaxSubsets, "permuted_divergence: more than ",
                    kMaxSubsets, " subsets");
    read_options(arguments, pr);
    for (int s = 0; s < pr.num_subsets; ++s) subsets_.bits[s] = uint8_t(arguments.subsets[s]);
    pr.classes = x.size(2);
    pr.want_grad = want_grad;
    STD_TORCH_CHECK(pr.rows < (int64_t{1} << 31), "permuted_divergence: more than 2^31 rows");
    pr.permutations =
        arguments.donors ? arguments.donors->size(1) : std::max<int64_t>(pr.rows - 1, 0);
    band_ = takes_band(arguments);
    LayOut& in = layout;
    const DivergenceTraits traits = traits_of(pr.divergence);
    in.scale = traits.log2() ? float(kLog2e) : 1.0f;
    in.centered = traits.softmax;
    in.saturated = traits.binary;
    read_rows(arguments, in);
    read_donors(arguments, in);
  }

  bool empty() const {
    return pr.rows == 0 || pr.classes == 0 || pr.permutations == 0 || pr.num_subsets == 0;
  }
  const Subsets& subsets() const { return subsets_; }
  // Whether its donors are shifts of the rows, for the kernels of a band.
  bool band() const { return band_; }
  // Whether it is a SmallPairs: where a launch costs more than making pairs again, and every block
  // can add up for itself what pairs weigh.
  bool small() const {
    constexpr int64_t kSmallRows = 256, kSmallElements = int64_t{1} << 20;
    constexpr int64_t kSmallWeighed = int64_t{1} << 15;
    const int64_t pairs = pr.num_subsets * pr.rows * pr.permutations;
    return !empty() && pr.rows <= kSmallRows && pr.classes <= kMaxSharedClasses &&
           pairs * pr.classes < kSmallElements && (!weighs() || pairs <= kSmallWeighed);
  }
  // Whether what the pairs of a subset weigh has to be added up.
  bool weighs() const { return pr.may_drop || pr.row_weight; }

  // What a band needs of the inputs beside the others.
  void lay_out_band() {
    LayOut& in = layout;
    const int64_t marks = 2 * pr.num_subsets * pr.rows;
    // as though the last block had all its rows
    const int64_t rows = pr.modalities * pr.rows + kBandRows;
    pr.powers = in.powers_to = take<float>(rows * pr.row_stride);
    pr.bias_powers = in.bias_powers_to = take<float>(pr.row_stride);
    pr.bad = in.bad_to = take<int32_t>(pr.modalities * pr.rows + 1);
    pr.left = take<int32_t>(marks);
    in.cleared[2] = {reinterpret_cast<float*>(pr.left), marks};
    pr.slots = pr.permutations;
    pr.clean_mass = take<float>(pr.rows);
    if (!in.shifts) return;
    pr.poison = in.poison;
    in.window_to = take<int64_t>(pr.slots + 1);
    pr.scattered = in.scattered_to = take<int32_t>(1);
  }

  // Memory that lives as long as this.
  template <class T>
  T* take(int64_t count) {
    kept_alive_.push_back(empty_beside(like_, {count}, scalar_type_of<T>()));
    return data<T>(kept_alive_.back());
  }

  BandProblem pr = {};
  LayOut layout = {};  // to be run by the caller, once it has its own wishes in it

 private:
  template <class T>
  const T* hold(const Tensor& x) {
    kept_alive_.push_back(contiguous_as(x, scalar_type_of<T>()));
    return data<const T>(kept_alive_.back());
  }

  bool takes_band(const PermutedDivergenceArguments& arguments) {
    constexpr int64_t kLeastBandRows = 64;                   // donors of a block are different rows
    constexpr int64_t kMostBandElements = int64_t{1} << 27;  // offsets have 32 bits
    if (!traits_of(pr.divergence).softmax || pr.modalities != 2 || pr.num_subsets > 2 ||
        pr.rows < kLeastBandRows || pr.classes > kMaxBandClasses ||
        pr.rows * pr.classes > kMostBandElements ||
        (arguments.donors && (!arguments.order || arguments.donors->size(0) > 1))) {
      return false;
    }
    int seen = 0;
    for (int s = 0; s < pr.num_subsets; ++s) {
      const int subset = subsets_.bits[s];
      if ((subset != 1 && subset != 2) || seen & subset) return false;
      seen |= subset;
    }
    return shared_memory() >= kBandSharedBytes;
  }

  // Bytes that a block may have of it on the current device.
  static int shared_memory() {
    int device = 0, bytes = 0;
    STD_CUDA_CHECK(cudaGetDevice(&device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return bytes;
  }

  void read_rows(const PermutedDivergenceArguments& arguments, LayOut& in) {
    const Tensor& x = arguments.contributions;
    in.modalities = pr.modalities;
    in.rows = pr.rows;
    in.classes = pr.classes;
    in.storage = storage_of(x);
    kept_alive_.push_back(contiguous_as(x, x.scalar_type()));
    in.contributions = data<const void>(kept_alive_.back());
    pr.row_stride = in.row_stride = band_ ? (pr.classes + 3) / 4 * 4 : pr.classes;
    const int64_t size = x.size(0) * x.size(1) * pr.row_stride;
    pr.contributions = in.contributions_to = take<float>(size);
    if (arguments.bias) in.bias = hold<float>(*arguments.bias);
    pr.bias = in.bias_to = take<float>(pr.classes);
    if (pr.exclude == Exclude::kSameLabel) {
      in.labels = hold<int64_t>(*arguments.labels);
      pr.labels = in.labels_to = take<int64_t>(pr.rows);
    }
    if (arguments.present) {
      in.present = hold<bool>(*arguments.present);
      in.present_to = take<uint32_t>(pr.rows);
      pr.present = in.present_to;
    }
    if (arguments.sample_weight) {
      in.sample_weight = hold<float>(*arguments.sample_weight);
      pr.row_weight = in.weight_to = take<float>(pr.rows);
    }
  }

  void read_donors(const PermutedDivergenceArguments& arguments, LayOut& in) {
    if (!arguments.donors) return;
    const Tensor& donors = *arguments.donors;
    const int64_t* from = hold<int64_t>(donors);
    pr.own_donors = donors.size(0) > 1;
    if (arguments.order) {
      in.lines = 1;
      in.given = hold<int64_t>(*arguments.order);
      in.shifts = from;
      in.num_shifts = donors.numel();
      pr.order = in.order = in.order_to = take<int64_t>(pr.rows);
      pr.shifts = in.shifts_to = take<int64_t>(in.num_shifts);
    } else {
      in.lines = donors.size(0) * donors.size(1);
      in.given = from;
      pr.table_stride = pr.rows;
      pr.table = in.table_to = take<int32_t>(in.lines * pr.rows);
    }
    in.receivers_to = take<int32_t>(in.lines * pr.rows);
    if (in.table_to && pr.want_grad) pr.receivers = in.receivers_to;
    in.poison = take<float>(in.lines);
  }

  const Tensor& like_;
  Subsets subsets_ = {};
  bool band_ = false;
  std::vector<Tensor> kept_alive_;
};

}  // namespace cuda
}  // namespace mcr
