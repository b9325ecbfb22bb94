// One attention to compute, and where its results go. Plain data: knows no Python and no ISA.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace regard {

using Index = std::ptrdiff_t;

#if defined(__aarch64__)
using Half = __fp16;  // GCC 12 has no _Float16 for C++ there
#else
using Half = _Float16;
#endif

enum class Dtype { f64, f32, bf16, f16 };

constexpr Index size_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// Matrices in memory as they came: one per (batch, head), any strides. All counts are elements.
struct Tensor {
  char* data = nullptr;
  Dtype dtype = Dtype::f32;
  Index row = 0;     // from one row to the next
  Index column = 0;  // from one column to the next
  std::vector<Index> offsets;

  const char* at(Index matrix, Index i, Index j) const {
    return data + (offsets[matrix] + i * row + j * column) * size_of(dtype);
  }
};

// Who may see whom: a tree of nodes, the children of a node before it, the root last.
struct MaskNode {
  enum Kind { band, padding, documents, dense, both, either } kind = band;
  int a = -1, b = -1;  // both, either: the children

  // band: key j is seen by query i when low + i <= j and (j < high + i or j < first), all per
  // batch entry. Sides that are open hold no numbers; without both upper sides there is no bound.
  std::vector<Index> low, high, first;

  // padding: flags (batch, S) and (batch, L); documents: numbers of the same shapes.
  std::vector<const uint8_t*> key_flags, query_flags;
  std::vector<const int32_t*> key_ids, query_ids;

  // dense: one matrix of bytes per (batch, head), addressed as a Tensor of 1-byte elements is.
  const uint8_t* bytes = nullptr;
  Index row = 0, column = 0;
  std::vector<Index> offsets;
};

using Mask = std::vector<MaskNode>;

// What is added to the scores: nothing, a dense array, or a function of the distance alone.
struct Bias {
  enum Kind { none, dense, by_distance } kind = none;
  Tensor array;  // dense: per (batch, head); by_distance: one row of L + S - 1 per head, in which
                 // query i of L and key j of S meet at i - j + S - 1
};

// How a query and a key are matched: by their product, or as vector · tanh(query + key).
struct Score {
  enum Kind { product, additive } kind = product;
  Tensor vector;  // one row of d_k per head
};

// Means over runs of queries of the weight on runs of keys.
struct Pool {
  struct Span {
    Index start, stop;
  };
  std::vector<Span> queries, keys;
  void* out = nullptr;  // (batch, heads, queries, keys)
};

// Results, in the type that is computed with (double for f64, float otherwise); null: not asked.
// Rows are (batch, heads, L) throughout.
struct Results {
  void* lse = nullptr;
  void* entropy = nullptr;
  void* sink = nullptr;
  void* peak_weight = nullptr;
  int64_t* peak_key = nullptr;
  int top = 0;
  void* top_weights = nullptr;  // (batch, heads, L, top)
  int64_t* top_keys = nullptr;
  void* received = nullptr;  // (batch, heads, S), zeroed
  Index received_rows = 0;   // the last so many of the L rows held
  std::vector<Pool> pools;   // their arrays zeroed

  // Whether the weights of a strip are kept until its log-sum-exp is known.
  bool keeps_mass() const { return received != nullptr || !pools.empty(); }
};

struct Problem {
  Index batch = 0, heads = 0, kv_heads = 0;
  Index L = 0, S = 0, d_k = 0, d_v = 0;
  Index row = 0;          // number of the first query held, as mask and bias count them
  Tensor query, key;      // per (batch, head), per (batch, kv_head)
  Tensor value, context;  // per (batch, kv_head), per (batch, head); unused when d_v is 0
  double scale = 1, softcap = 0;
  double dropout = 0;         // the chance of a weight to be dropped
  uint64_t seed = 0;          // which it depends on
  bool in_parts = false;      // whether tiles may multiply float32 as two bfloat16 each
  std::vector<double> sinks;  // one per head, or empty
  Mask mask;
  Bias bias;
  Score score;
  Results results;

  Index group() const { return kv_heads ? heads / kv_heads : 0; }
};

// What decides whether the kernel for a few queries serves.
struct Extent {
  Index rows = 0;  // queries that share a key head
  Index S = 0, d_k = 0, d_v = 0;
  bool adjacent = false;  // the numbers of a key, and of a value, lie one after the other
};

inline Extent extent_of(const Problem& problem) {
  const bool adjacent = problem.key.column == 1 && (!problem.d_v || problem.value.column == 1);
  return {problem.group() * problem.L, problem.S, problem.d_k, problem.d_v, adjacent};
}

// The backward pass of a problem: what it is given beside it, and where gradients go. Arrays of
// numbers are of the type that is computed with; rows are (batch, heads, L).
struct Gradients {
  Tensor of_context;             // per (batch, head), L x d_v
  const void* lse = nullptr;     // of the forward pass
  const void* of_lse = nullptr;  // or null
  Tensor query;                  // per (batch, head), L x d_k
  void* key = nullptr;           // (batch, kv_heads, S, d_k)
  void* value = nullptr;         // (batch, kv_heads, S, d_v)
  void* sinks = nullptr;         // (batch, heads, L), what each row gives, or null
  void* vector = nullptr;        // (batch, heads, d_k), what each head gives, or null
  // Per (batch, head), zeroed; its numbers are of the type that is computed with. Strides of 0
  // where the bias is broadcast. Where rows share numbers, there are parts of it, to be added up.
  Tensor bias;
  Index bias_parts = 1, bias_step = 0;
};

}  // namespace regard
