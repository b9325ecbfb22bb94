// What Python sees of the kernels. Arguments were checked by regard._problem; here they only change
// their form.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <stdexcept>

#include "bindings_array.h"
#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace regard {
namespace {

using Input = nb::ndarray<nb::ro, nb::device::cpu>;
using Output = nb::ndarray<nb::device::cpu>;
using Numbers = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Spans = nb::ndarray<const int64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;

// Where each matrix of the last two dimensions begins, in the order of the leading indices.
std::vector<Index> matrix_offsets(const Index* shape, const Index* stride, Index leading) {
  std::vector<Index> offsets{0};
  for (Index d = 0; d < leading; d++) {
    std::vector<Index> next;
    next.reserve(offsets.size() * shape[d]);
    for (Index offset : offsets)
      for (Index n = 0; n < shape[d]; n++) next.push_back(offset + n * stride[d]);
    offsets = std::move(next);
  }
  return offsets;
}

Tensor tensor_of(const Array& array) {
  const Index n = array.ndim();
  bool some = true;
  for (Index size : array.shape) some = some && size;
  if (some && !array.data)
    throw std::invalid_argument("attention: a tensor has no memory of its own");
  return {array.data, array.dtype, array.stride[n - 2], array.stride[n - 1],
          matrix_offsets(array.shape.data(), array.stride.data(), n - 2)};
}

// A mask under construction: leaves are pushed, both() and either() join the last two. It keeps the
// arrays that its nodes point into.
class MaskBuilder {
 public:
  void band(std::optional<Numbers> low, std::optional<Numbers> high, std::optional<Numbers> first) {
    MaskNode node;
    node.kind = MaskNode::band;
    node.low = vector_of(low);
    node.high = vector_of(high);
    node.first = vector_of(first);
    push(std::move(node));
  }

  void padding(Input keys, std::optional<Input> queries) {
    MaskNode node;
    node.kind = MaskNode::padding;
    node.key_flags = rows_of<uint8_t>(keys);
    if (queries) node.query_flags = rows_of<uint8_t>(*queries);
    push(std::move(node));
  }

  void documents(Input queries, Input keys) {
    MaskNode node;
    node.kind = MaskNode::documents;
    node.query_ids = rows_of<int32_t>(queries);
    node.key_ids = rows_of<int32_t>(keys);
    push(std::move(node));
  }

  void dense(Input array) {
    MaskNode node;
    node.kind = MaskNode::dense;
    node.bytes = static_cast<const uint8_t*>(array.data());
    node.row = array.stride(array.ndim() - 2);
    node.column = array.stride(array.ndim() - 1);
    node.offsets = matrix_offsets(array.shape_ptr(), array.stride_ptr(), array.ndim() - 2);
    arrays_.push_back(std::move(array));
    push(std::move(node));
  }

  void both() { join(MaskNode::both); }
  void either() { join(MaskNode::either); }

  const Mask& nodes() const { return nodes_; }

 private:
  static std::vector<Index> vector_of(const std::optional<Numbers>& numbers) {
    return numbers ? std::vector<Index>(numbers->data(), numbers->data() + numbers->size())
                   : std::vector<Index>{};
  }

  // A pointer to each row of (*batch, n), whose last dimension is contiguous.
  template <class T>
  std::vector<const T*> rows_of(const Input& array) {
    std::vector<const T*> rows;
    for (Index offset : matrix_offsets(array.shape_ptr(), array.stride_ptr(), array.ndim() - 1))
      rows.push_back(static_cast<const T*>(array.data()) + offset);
    arrays_.push_back(array);
    return rows;
  }

  void push(MaskNode node) {
    open_.push_back(int(nodes_.size()));
    nodes_.push_back(std::move(node));
  }

  void join(MaskNode::Kind kind) {
    if (open_.size() < 2) throw std::invalid_argument("a pair needs two masks");
    MaskNode node;
    node.kind = kind;
    node.b = open_.back();
    open_.pop_back();
    node.a = open_.back();
    open_.pop_back();
    push(std::move(node));
  }

  Mask nodes_;
  std::vector<int> open_;
  std::vector<Input> arrays_;
};

void* data_of(std::optional<Output>& array) { return array ? array->data() : nullptr; }

std::vector<Pool::Span> spans_of(const Spans& array) {
  std::vector<Pool::Span> spans(array.shape(0));
  for (size_t n = 0; n < spans.size(); n++) spans[n] = {array(n, 0), array(n, 1)};
  return spans;
}

// Arrays for the results asked for, one attribute each.
struct Asked {
  std::optional<Output> lse, entropy, sink, peak_weight, peak_key, top_weights, top_keys, received;
  Index received_rows = 0;
  std::vector<Pool> pools;
  std::vector<Output> pool_arrays;

  void pool(Spans queries, Spans keys, Output out) {
    pools.push_back({spans_of(queries), spans_of(keys), out.data()});
    pool_arrays.push_back(std::move(out));
  }

  Results results() {
    Results results;
    results.lse = data_of(lse);
    results.entropy = data_of(entropy);
    results.sink = data_of(sink);
    results.peak_weight = data_of(peak_weight);
    results.peak_key = static_cast<int64_t*>(data_of(peak_key));
    results.top = top_keys ? int(top_keys->shape(top_keys->ndim() - 1)) : 0;
    results.top_weights = data_of(top_weights);
    results.top_keys = static_cast<int64_t*>(data_of(top_keys));
    results.received = data_of(received);
    results.received_rows = received_rows;
    results.pools = pools;
    return results;
  }
};

// A problem without results, and the arrays that it points into.
struct KeptProblem {
  Problem problem;
  std::vector<nb::object> kept;

  KeptProblem(const Array& query, const Array& key, const std::optional<Array>& value,
              const std::optional<Array>& context, double scale, double softcap,
              std::vector<double> sinks, nb::object mask, const std::optional<Array>& dense_bias,
              const std::optional<Array>& distance_bias, Index row, double dropout, uint64_t seed,
              const std::optional<Array>& vector, bool in_parts) {
    const Index n = query.ndim();
    problem.heads = query.shape[n - 3];
    problem.kv_heads = key.shape[n - 3];
    problem.batch = 1;
    for (Index d = 0; d + 3 < n; d++) problem.batch *= query.shape[d];
    problem.L = query.shape[n - 2];
    problem.S = key.shape[n - 2];
    problem.d_k = query.shape[n - 1];
    problem.row = row;
    problem.query = keep(query);
    problem.key = keep(key);
    if (value) {
      problem.d_v = value->shape[n - 1];
      problem.value = keep(*value);
      problem.context = keep(*context);
    }
    problem.scale = scale;
    problem.softcap = softcap;
    problem.dropout = dropout;
    problem.seed = seed;
    problem.in_parts = in_parts;
    problem.sinks = std::move(sinks);
    if (!mask.is_none()) {
      problem.mask = nb::cast<const MaskBuilder&>(mask).nodes();
      kept.push_back(std::move(mask));
    }
    if (vector) problem.score = {Score::additive, keep(*vector)};
    if (dense_bias) problem.bias = {Bias::dense, keep(*dense_bias)};
    if (distance_bias) problem.bias = {Bias::by_distance, keep(*distance_bias)};
  }

  Tensor keep(const Array& array) {
    kept.push_back(array.owner);
    return tensor_of(array);
  }
};

void forward(KeptProblem& given, const Results& results) {
  given.problem.results = results;
  nb::gil_scoped_release released;
  isa().forward(given.problem);
}

void forward_asked(KeptProblem& given, Asked* asked) {
  forward(given, asked ? asked->results() : Results());
}

// Whether these need no view of another shape.
bool are_usual(const Array& query, const Array& key, const Array& value, bool grouped) {
  const Index n = query.ndim();
  if (n < 3 || key.ndim() != n || value.ndim() != n) return false;
  if (key.dtype != query.dtype || value.dtype != query.dtype) return false;
  for (Index d = 0; d < n - 3; d++)
    if (key.shape[d] != query.shape[d] || value.shape[d] != query.shape[d]) return false;
  const Index heads = query.shape[n - 3], kv_heads = key.shape[n - 3];
  const Index longest = std::numeric_limits<int32_t>::max();  // as LONGEST in _backends/native.py
  return key.shape[n - 1] == query.shape[n - 1] && value.shape[n - 2] == key.shape[n - 2] &&
         key.shape[n - 2] <= longest && value.shape[n - 3] == kv_heads &&
         (heads == kv_heads || (grouped && kv_heads && heads % kv_heads == 0));
}

// Whether what is kept of rows has the dtype of their tensor.
bool computes_in(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::f64; }

// A problem with these options and no others.
KeptProblem usual_problem(const Array& query, const Array& key, const std::optional<Array>& value,
                          const std::optional<Array>& context, nb::object mask,
                          const std::optional<Array>& bias, double scale) {
  return {query, key,          value, context, scale, 0.0,          {},   std::move(mask),
          bias,  std::nullopt, 0,     0.0,     0,     std::nullopt, false};
}

// The context of tensors, with the lse if it is wanted; None where their shapes or dtypes need a
// closer look. In one call, since each that Python makes takes a good part of the time of a small
// attention.
nb::object attend(nb::handle query, nb::handle key, nb::handle value, nb::object mask,
                  const std::optional<Array>& bias, double scale, bool grouped, bool with_lse) {
  Array q(query), k(key);
  std::optional<Array> v(value);
  if (!read_tensor(q) || !read_tensor(k) || !read_tensor(*v) || !are_usual(q, k, *v, grouped))
    return nb::none();
  if (with_lse && !computes_in(q.dtype)) return nb::none();
  const std::optional<Array> context = made_like(q, with_columns(q, v->shape.back()));
  KeptProblem problem = usual_problem(q, k, v, context, std::move(mask), bias, scale);
  if (!with_lse) {
    forward(problem, Results());
    return context->owner;
  }
  const Array lse = made_like(q, shape_of_rows(q));
  Results results;
  results.lse = lse.data;
  forward(problem, results);
  return nb::make_tuple(context->owner, lse.owner);
}

void backward(const KeptProblem& given, const Array& of_context, const Array& lse,
              const std::optional<Array>& of_lse, const Array& of_query, const Array& of_key,
              const Array& of_value, const std::optional<Array>& of_sinks,
              const std::optional<Array>& of_bias, const std::optional<Array>& of_vector) {
  Gradients gradients;
  gradients.of_context = tensor_of(of_context);
  gradients.lse = lse.data;
  gradients.of_lse = of_lse ? of_lse->data : nullptr;
  gradients.query = tensor_of(of_query);
  gradients.key = of_key.data;
  gradients.value = of_value.data;
  gradients.sinks = of_sinks ? of_sinks->data : nullptr;
  gradients.vector = of_vector ? of_vector->data : nullptr;
  if (of_bias) {  // (parts, *batch, heads, L, S)
    const Index n = of_bias->ndim();
    gradients.bias_parts = of_bias->shape[0];
    gradients.bias_step = of_bias->stride[0];
    gradients.bias = {of_bias->data, of_bias->dtype, of_bias->stride[n - 2], of_bias->stride[n - 1],
                      matrix_offsets(&of_bias->shape[1], &of_bias->stride[1], n - 3)};
  }
  nb::gil_scoped_release released;
  isa().backward(given.problem, gradients);
}

// The gradients of query, key and value, as tensors like them, from what `attend` was given and
// gave; None where that has changed its shape or dtype on the way, as hooks may let it.
nb::object gradients(nb::handle of_context, nb::handle query, nb::handle key, nb::handle value,
                     nb::handle context, nb::handle lse, nb::object mask,
                     const std::optional<Array>& bias, double scale) {
  Array q(query), k(key), given(of_context), rows(lse);
  std::optional<Array> v(value), blended(context);
  for (Array* array : {&q, &k, &*v, &given, &rows, &*blended})
    if (!read_tensor(*array) || array->dtype != q.dtype) return nb::none();
  if (!are_usual(q, k, *v, true) || !computes_in(q.dtype) || !is_dense(rows) ||
      rows.shape != shape_of_rows(q) || given.shape != blended->shape ||
      given.shape != with_columns(q, v->shape.back()))
    return nb::none();
  const Array of_query = made_like(q, q.shape), of_key = made_like(k, k.shape),
              of_value = made_like(*v, v->shape);
  const KeptProblem problem = usual_problem(q, k, v, blended, std::move(mask), bias, scale);
  backward(problem, given, rows, std::nullopt, of_query, of_key, of_value, std::nullopt,
           std::nullopt, std::nullopt);
  return nb::make_tuple(of_query.owner, of_key.owner, of_value.owner);
}

}  // namespace

NB_MODULE(_native, module) {
  module.doc() = "Kernels of regard; see kernels/ in the source.";

  nb::class_<MaskBuilder>(module, "Mask")
      .def(nb::init<>())
      .def("band", &MaskBuilder::band, "low"_a.none(), "high"_a.none(), "first"_a.none())
      .def("padding", &MaskBuilder::padding, "keys"_a, "queries"_a.none())
      .def("documents", &MaskBuilder::documents, "queries"_a, "keys"_a)
      .def("dense", &MaskBuilder::dense, "array"_a)
      .def("both", &MaskBuilder::both)
      .def("either", &MaskBuilder::either);

  nb::class_<Asked>(module, "Asked")
      .def(nb::init<>())
      .def_rw("lse", &Asked::lse)
      .def_rw("entropy", &Asked::entropy)
      .def_rw("sink", &Asked::sink)
      .def_rw("peak_weight", &Asked::peak_weight)
      .def_rw("peak_key", &Asked::peak_key)
      .def_rw("top_weights", &Asked::top_weights)
      .def_rw("top_keys", &Asked::top_keys)
      .def_rw("received", &Asked::received)
      .def_rw("received_rows", &Asked::received_rows)
      .def("pool", &Asked::pool, "queries"_a, "keys"_a, "out"_a);

  nb::class_<KeptProblem>(module, "Problem")
      .def(nb::init<const Array&, const Array&, const std::optional<Array>&,
                    const std::optional<Array>&, double, double, std::vector<double>, nb::object,
                    const std::optional<Array>&, const std::optional<Array>&, Index, double,
                    uint64_t, const std::optional<Array>&, bool>(),
           "query"_a, "key"_a, "value"_a.none(), "context"_a.none(), "scale"_a, "softcap"_a,
           "sinks"_a, "mask"_a.none(), "dense_bias"_a.none(), "distance_bias"_a.none(), "row"_a,
           "dropout"_a, "seed"_a, "vector"_a.none(), "in_parts"_a);

  module.def("forward", &forward_asked, "problem"_a, "asked"_a.none());
  module.def("attend", &attend, "query"_a, "key"_a, "value"_a, "mask"_a.none(), "bias"_a.none(),
             "scale"_a, "grouped"_a, "with_lse"_a);
  module.def("gradients", &gradients, "of_context"_a, "query"_a, "key"_a, "value"_a, "context"_a,
             "lse"_a, "mask"_a.none(), "bias"_a.none(), "scale"_a);
  module.def("backward", &backward, "problem"_a, "of_context"_a, "lse"_a, "of_lse"_a.none(),
             "of_query"_a, "of_key"_a, "of_value"_a, "of_sinks"_a.none(), "of_bias"_a.none(),
             "of_vector"_a.none());
  module.def(
      "decodes",
      [](Index rows, Index S, Index d_k, Index d_v, bool adjacent, bool in_double) {
        return isa().decodes({rows, S, d_k, d_v, adjacent}, in_double);
      },
      "rows"_a, "S"_a, "d_k"_a, "d_v"_a, "adjacent"_a, "in_double"_a,
      "Whether the kernel for a few queries serves.");
  module.def("isa", [] { return std::string(isa().name); }, "The instruction set in use.");
  module.def("isas", &supported_isas, "Those that this machine runs, best first.");
}

}  // namespace regard
