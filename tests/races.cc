// The kernels on four threads under the thread sanitizer, which ends the program with an error
// where two of them meet in memory without order. What they compute is tested in Python.
#include <cstdio>
#include <cstring>
#include <random>

#include "dispatch.h"
#include "schedule.h"

using namespace regard;

namespace {

constexpr Index kBatch = 2, kHeads = 4, kKvHeads = 2, kD = 32;

// (count, rows, columns), of small numbers.
struct Matrices {
  std::vector<float> numbers;
  Tensor tensor;

  Matrices(Index count, Index rows, Index columns) : numbers(count * rows * columns) {
    std::mt19937 random(unsigned(count * rows + columns));
    for (float& x : numbers) x = std::normal_distribution<float>()(random);
    tensor = {reinterpret_cast<char*>(numbers.data()), Dtype::f32, columns, 1, {}};
    for (Index n = 0; n < count; n++) tensor.offsets.push_back(n * rows * columns);
  }

  // The same numbers, cut to bfloat16: their upper halves.
  void cut() {
    char* bytes = tensor.data;
    for (size_t n = 0; n < numbers.size(); n++) std::memmove(bytes + 2 * n, bytes + 4 * n + 2, 2);
    tensor.dtype = Dtype::bf16;
  }
};

// An attention with room for every result and gradient.
struct Case {
  Index L, S, rows = kBatch * kHeads * L;
  Matrices query{kBatch * kHeads, L, kD}, key{kBatch * kKvHeads, S, kD},
      value{kBatch * kKvHeads, S, kD}, context{kBatch * kHeads, L, kD}, bias{1, L, S},
      vector{kHeads, 1, kD}, of_context{kBatch * kHeads, L, kD}, of_query{kBatch * kHeads, L, kD};
  std::vector<float> lse = std::vector<float>(rows), entropy = lse, peak = lse, of_sinks = lse;
  std::vector<int64_t> peak_key = std::vector<int64_t>(rows), top_keys{peak_key};
  std::vector<float> top = lse, received = std::vector<float>(kBatch * kHeads * S),
                     map = std::vector<float>(kBatch * kHeads * 4),
                     of_key = std::vector<float>(kBatch * kKvHeads * S * kD), of_value = of_key,
                     of_vector = std::vector<float>(kBatch * kHeads * kD),
                     of_bias = std::vector<float>(3 * L * S);
  Problem problem;

  Case(Index queries, Index keys) : L(queries), S(keys) {
    problem.batch = kBatch;
    problem.heads = kHeads;
    problem.kv_heads = kKvHeads;
    problem.L = L;
    problem.S = S;
    problem.d_k = problem.d_v = kD;
    problem.query = query.tensor;
    problem.key = key.tensor;
    problem.value = value.tensor;
    problem.context = context.tensor;
    problem.scale = 0.2;
    problem.sinks.assign(kHeads, 0.5);
    Results& results = problem.results;
    results.lse = lse.data();
    results.entropy = entropy.data();
    results.peak_weight = peak.data();
    results.peak_key = peak_key.data();
    results.top = 1;
    results.top_weights = top.data();
    results.top_keys = top_keys.data();
    results.received = received.data();
    results.received_rows = L;
    const std::vector<Pool::Span> halves[] = {{{0, L / 2}, {L / 2, L}}, {{0, S / 2}, {S / 2, S}}};
    results.pools.push_back({halves[0], halves[1], map.data()});
  }

  void cut() {
    for (Matrices* all : {&query, &key, &value, &context, &of_context, &of_query}) all->cut();
    problem.query = query.tensor;
    problem.key = key.tensor;
    problem.value = value.tensor;
    problem.context = context.tensor;
  }

  void causal() {
    MaskNode band;
    band.high.assign(kBatch, S - L + 1);
    problem.mask.push_back(band);
  }

  void learned_bias() {
    bias.tensor.offsets.assign(kBatch * kHeads, 0);
    problem.bias = {Bias::dense, bias.tensor};
  }

  void additive() {
    problem.score = {Score::additive, vector.tensor};
    problem.scale = 1;
  }

  void run(const char* name) {
    std::printf("%s\n", name);
    isa().forward(problem);
    Gradients gradients;
    gradients.of_context = of_context.tensor;
    gradients.lse = lse.data();
    gradients.query = of_query.tensor;
    gradients.key = of_key.data();
    gradients.value = of_value.data();
    gradients.sinks = of_sinks.data();
    if (problem.score.kind == Score::additive) gradients.vector = of_vector.data();
    if (problem.bias.kind == Bias::dense) {
      gradients.bias = bias.tensor;
      gradients.bias.data = reinterpret_cast<char*>(of_bias.data());
      gradients.bias_parts = 3;
      gradients.bias_step = L * S;
    }
    isa().backward(problem, gradients);
  }
};

void add_out_of_turn(void* sum, Index, int) { *static_cast<float*>(sum) += 1; }

}  // namespace

// With an argument it does what the kernels must not, to show that it would be seen.
int main(int count, char**) {
  std::printf("%s, %d threads\n", isa().name, threads());
  if (count > 1) {
    float sum = 0;
    run(100000, threads(), add_out_of_turn, &sum);
    return 0;
  }
  Case(300, 200).run("everything observed");
  Case causal(300, 300);
  causal.causal();
  causal.run("causal");
  Case halves(300, 300);
  halves.cut();
  halves.causal();
  halves.run("causal, bfloat16");
  Case biased(150, 150);
  biased.learned_bias();
  biased.problem.dropout = 0.1;
  biased.run("a learned bias, and dropout");
  Case additive(60, 70);
  additive.additive();
  additive.run("the additive score");
  Case(1, 5000).run("one query, whose keys are shared out");
}
