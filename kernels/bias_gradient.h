// The gradient of a bias, in a pass of its own: two products of the backward pass's five are
// computed again. Many (batch, head) may share the numbers of a bias; here a task takes all that
// add to its rows of the gradient one after the other, so that nothing is added twice at a time, in
// any order but one, or to more memory than the gradient itself. Included inside each ISA's
// namespace.

template <class T, int NV, bool kTiles>
struct BiasGradient {
  using Strips = Bundle<T, BackwardStrip<T, NV, kTiles>>;
  static constexpr Index W = kWidth<T>, R = NV * W;
  const Problem& problem;
  const Gradients& gradients;
  std::vector<std::vector<Index>> targets;  // the matrices (batch, head) that share numbers
  Index chunks, parts, step;  // of rows; of the chunks; from one's gradient to the next
  std::vector<std::unique_ptr<Strips>> workers;

  BiasGradient(const Problem& problem, const Gradients& gradients)
      : problem(problem), gradients(gradients), chunks((problem.L + R - 1) / R) {
    const Tensor& bias = gradients.bias;
    std::vector<Index> order(bias.offsets.size());
    for (Index n = 0; n < Index(order.size()); n++) order[n] = n;
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return bias.offsets[a] < bias.offsets[b]; });
    for (Index matrix : order) {
      if (targets.empty() || bias.offsets[targets.back()[0]] != bias.offsets[matrix])
        targets.emplace_back();
      targets.back().push_back(matrix);
    }
    // Rows with numbers of their own need no part of the gradient for themselves.
    const bool own = bias.row && std::abs(bias.row) >= problem.S * std::abs(bias.column);
    parts = own ? chunks : std::min(gradients.bias_parts, chunks);
    step = own ? 0 : gradients.bias_step;
  }

  void operator()() {
    const Index tasks = Index(targets.size()) * parts;
    const int count = int(std::min<Index>(threads(), tasks));
    for (int thread = 0; thread < count; thread++)
      workers.push_back(std::make_unique<Strips>(problem, Index(1), gradients));
    if (count) run(tasks, count, &BiasGradient::add_task, this);
  }

  static void add_task(void* context, Index task, int thread) {
    BiasGradient& self = *static_cast<BiasGradient*>(context);
    const Problem& problem = self.problem;
    auto& strips = *self.workers[thread];
    const Index part = task % self.parts;
    for (Index chunk = part; chunk < self.chunks; chunk += self.parts)
      for (Index matrix : self.targets[task / self.parts]) {
        const Index head = matrix % problem.heads, group = problem.group(), i0 = chunk * R;
        const Index rows = std::min(R, problem.L - i0);
        strips[0].enter(matrix / problem.heads, head / group, head % group * problem.L + i0, rows);
        strips.each_block(1, [&](auto& strip, Index j0, Index j1, Sight sight) {
          self.add(strip.score_gradients(j0, j1, sight), matrix, i0, rows, j0, j1,
                   part * self.step);
        });
      }
  }

  // Queries lie in the tile's lanes. In the gradient keys do, or, where it depends on the distance
  // alone, queries too.
  void add(const T* tile, Index matrix, Index i0, Index rows, Index j0, Index j1, Index at) const {
    const Tensor& bias = gradients.bias;
    T* out =
        reinterpret_cast<T*>(bias.data) + bias.offsets[matrix] + at + (problem.row + i0) * bias.row;
    for (Index first = 0; first < rows; first += W)
      for (Index j = j0; j < j1; j += W) {
        Vec<T> square[W];
        const Index lanes = std::min(W, rows - first), keys = std::min(W, j1 - j);
        for (Index n = 0; n < W; n++)
          square[n] = load(tile + (j - j0 + std::min(n, keys - 1)) * R + first);
        if (bias.row == 1) {
          for (Index n = 0; n < keys; n++)
            add_line(out + first + (j + n) * bias.column, 1, square[n], lanes);
          continue;
        }
        transpose<T>(square);
        for (Index n = 0; n < lanes; n++)
          add_line(out + (first + n) * bias.row + j * bias.column, bias.column, square[n], keys);
      }
  }

  static void add_line(T* out, Index step, Vec<T> x, Index count) {
    if (step == 1 && count == W) return store<T>(out, load(out) + x);
    for (Index n = 0; n < count; n++) out[n * step] += x[n];
  }
};

template <class T, int NV, bool kTiles>
inline void gradients_of(const Problem& problem, const Gradients& gradients) {
  Backward<T, NV, kTiles>(problem, gradients)();
  if (gradients.bias.data) BiasGradient<T, NV, kTiles>(problem, gradients)();
}

template <class T, bool kTiles>
inline void backward_as(const Problem& problem, const Gradients& gradients) {
  switch (vectors_in_strip<T>(problem, Cuts(problem, kBlock))) {
    case 1:
      return gradients_of<T, 1, kTiles>(problem, gradients);
    case 2:
      return gradients_of<T, 2, kTiles>(problem, gradients);
#if REGARD_VECTORS == 4
    case 3:
      return gradients_of<T, 3, kTiles>(problem, gradients);
    case 4:
      return gradients_of<T, 4, kTiles>(problem, gradients);
#endif
  }
}

inline void backward(const Problem& problem, const Gradients& gradients) {
  problem.query.dtype == Dtype::f64 ? backward_as<double, false>(problem, gradients)
                                    : backward_as<float, false>(problem, gradients);
}

// A caller of the operator may give the context's gradient in another dtype, which is no row of 16
// bits.
inline void backward_by_tiles(const Problem& problem, const Gradients& gradients,
                              const auto& others) {
  if (!fits_tiles(problem) || gradients.of_context.dtype != problem.query.dtype)
    return others.backward(problem, gradients);
  backward_as<float, true>(problem, gradients);
}
