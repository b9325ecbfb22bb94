// What is learned about the weights on the way: one loop per statistic, lanes are queries.
//
// Nothing is known of a row's final maximum while its blocks pass. Sums over keys are rescaled with
// the context; numbers that are kept per key (the mass) remember the maximum of their block and are
// rescaled once, at the end. Included inside each ISA's namespace.

// Where the keys are cut when masses are kept: at the bounds of every pool's key spans, and
// everywhere when each key's own mass is received.
struct Cuts {
  std::vector<Index> bounds;  // of the segments, rising; the blocks' bounds are among them
  std::vector<Index> first;   // per block: its first segment; one more at the end
  std::vector<std::vector<Pool::Span>> pools;  // per pool: its key spans in segments

  Cuts(const Problem& problem, Index block) {
    const Results& results = problem.results;
    if (!results.keeps_mass()) return;
    for (Index j = 0; j < problem.S; j += results.received ? 1 : block) bounds.push_back(j);
    bounds.push_back(problem.S);
    for (const Pool& pool : results.pools)
      for (const Pool::Span& span : pool.keys) {
        bounds.push_back(span.start);
        bounds.push_back(span.stop);
      }
    std::sort(bounds.begin(), bounds.end());
    bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
    for (Index j = 0; j < problem.S + block; j += block)
      first.push_back(segment(std::min(j, problem.S)));
    for (const Pool& pool : results.pools) {
      auto& spans = pools.emplace_back();
      for (const Pool::Span& span : pool.keys)
        spans.push_back({segment(span.start), segment(span.stop)});
    }
  }

  Index count() const { return bounds.empty() ? 0 : Index(bounds.size()) - 1; }
  Index segment(Index j) const {
    return std::lower_bound(bounds.begin(), bounds.end(), j) - bounds.begin();
  }
};

// The sums over a row's keys, lane by lane. While blocks pass, the sink is not in them.
template <class T, Index R>
struct RowSums {
  T best[R];     // the greatest visible score
  T maximum[R];  // what scores are taken relative to: the greatest of them, sink included
  T sum[R];      // of exp(score - maximum)
  T moment[R];   // of exp(score - maximum) · (score - maximum)
  bool seen[R];  // whether any key is visible
};

template <class T, int NV>
class StripObservation {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  StripObservation(const Problem& problem, const Cuts& cuts, Index block)
      : problem_(problem),
        results_(problem.results),
        cuts_(cuts),
        peak_(results_.peak_key ? R : 0),
        top_(results_.top * R),
        top_keys_(results_.top * R),
        mass_(cuts.count() * R),
        maximum_(results_.keeps_mass() ? (problem.S + block - 1) / block * R : 0),
        used_(results_.keeps_mass() ? (problem.S + block - 1) / block : 0) {}

  void enter() {
    std::fill(peak_.begin(), peak_.end(), Int<T>(-1));
    std::fill(top_.begin(), top_.end(), -kInf<T>);
    std::fill(top_keys_.begin(), top_keys_.end(), Int<T>(-1));
    std::fill(used_.begin(), used_.end(), false);
  }

  // The scores of keys [j0, j0 + keys), before they become weights; `before` and `now` are the
  // rows' maxima without and with them.
  void scores(const T* tile, Index j0, Index keys, const T* before, const T* now) {
    for (int v = 0; v < NV; v++) {
      if (!peak_.empty() && any(load(now + v * W) > load(before + v * W)))
        find_peak(tile + v * W, j0, keys, load(before + v * W), &peak_[v * W]);
      if (results_.top) insert(tile + v * W, j0, keys, v * W);
    }
  }

  bool keeps_mass() const { return results_.keeps_mass(); }

  // Where the sums of the weights of a block's segments go; their bounds.
  T* mass(Index block, const T* maximum) {
    used_[block] = true;
    std::memcpy(&maximum_[block * R], maximum, R * sizeof(T));
    return &mass_[cuts_.first[block] * R];
  }
  const Index* bounds(Index block) const { return &cuts_.bounds[cuts_.first[block]]; }
  Index segments(Index block) const { return cuts_.first[block + 1] - cuts_.first[block]; }

  // What each row tells about itself.
  void write_rows(const Rows& rows, const RowSums<T, R>& sums) {
    for (const Rows::Run& run : rows.runs)
      for (Index n = 0; n < run.count; n++) {
        const Index lane = run.lane + n;
        const Index at = (rows.batch * problem_.heads + run.head) * problem_.L + run.i + n;
        const T total = sums.sum[lane], lse = sums.maximum[lane] + std::log(total);
        put(results_.lse, at, total == T(0) ? -kInf<T> : lse);
        put(results_.entropy, at,
            sums.seen[lane] ? std::log(total) - sums.moment[lane] / total : T(0));
        if (results_.sink) {
          const T sink = problem_.sinks.empty() ? -kInf<T> : T(problem_.sinks[run.head]);
          put(results_.sink, at, sink == -kInf<T> ? T(0) : weight(sink, sums, lane));
        }
        if (results_.peak_key) write_peak(at, lane, sums);
        if (results_.top) write_top(at, lane, sums);
      }
  }

  // Weights summed over rows. `scale` is, per lane, what a weight is multiplied with once its
  // block's maximum has been exchanged for the row's: 1 / sum, or 0 for rows that see nothing.
  void sum_rows(const Rows& rows, const T* maximum, const T* scale) {
    if (!keeps_mass()) return;
    gather_groups(rows);
    const bool alike = std::all_of(groups_.begin(), groups_.end(), [&](const Group& group) {
      return group.from == 0 && group.to == rows.rows;
    });
    sum_groups(maximum, scale, alike);
  }

  // The sums join results that strips share; in the strip's turn.
  void write_shared() const {
    for (const Group& group : groups_) add_group(group, &group_sums_[group.sums]);
  }

 private:
  static void put(void* array, Index at, T x) {
    if (array) static_cast<T*>(array)[at] = x;
  }

  static void find_peak(const T* tile, Index j0, Index keys, Vec<T> best, Int<T>* peak) {
    Vec<Int<T>> key = load(peak);
    for (Index j = 0; j < keys; j++) {
      const Vec<T> score = load(tile + j * R);
      const Vec<Int<T>> better = score > best;
      key = better ? splat(Int<T>(j0 + j)) : key;
      best = better ? score : best;
    }
    store(peak, key);
  }

  // Most keys beat none of the best, so a vector is first compared with the last of them.
  void insert(const T* tile, Index j0, Index keys, Index lane) {
    const Index last = (results_.top - 1) * R + lane;
    Vec<T> least = load(&top_[last]);
    for (Index j = 0; j < keys; j++) {
      Vec<T> score = load(tile + j * R);
      if (!any(score > least)) continue;
      Vec<Int<T>> key = splat(Int<T>(j0 + j)), better = {};
      for (Index at = lane; at <= last; at += R) {
        const Vec<T> held = load(&top_[at]);
        const Vec<Int<T>> held_key = load(&top_keys_[at]);
        // Once a key has found its place all after it move on, also where they weigh the same.
        better |= score > held;
        store<T>(&top_[at], better ? score : held);
        store<Int<T>>(&top_keys_[at], better ? key : held_key);
        score = better ? held : score;
        key = better ? held_key : key;
      }
      least = load(&top_[last]);
    }
  }

  // Not from the lse: at great scores its rounding alone would change weights.
  static T weight(T score, const RowSums<T, R>& sums, Index lane) {
    return std::exp(score - sums.maximum[lane]) / sums.sum[lane];
  }

  // Where no key is known a weight is 0, or NaN in a row whose sum is.
  static T no_weight(const RowSums<T, R>& sums, Index lane) {
    return std::isnan(sums.sum[lane]) ? sums.sum[lane] : T(0);
  }

  void write_peak(Index at, Index lane, const RowSums<T, R>& sums) {
    results_.peak_key[at] = peak_[lane];
    put(results_.peak_weight, at,
        peak_[lane] < 0 ? no_weight(sums, lane) : weight(sums.best[lane], sums, lane));
  }

  void write_top(Index at, Index lane, const RowSums<T, R>& sums) {
    for (Index k = 0; k < results_.top; k++) {
      const Int<T> key = top_keys_[k * R + lane];
      results_.top_keys[at * results_.top + k] = key;
      put(results_.top_weights, at * results_.top + k,
          key < 0 ? no_weight(sums, lane) : weight(top_[k * R + lane], sums, lane));
    }
  }

  // Rows of the strip whose weights are summed together, and where they go: to a row of a pool, or
  // (pool -1) to what keys receive.
  struct Group {
    Index from, to;  // lanes
    int pool;
    T* out;
    Index sums;  // where its sums begin
  };

  void gather_groups(const Rows& rows) {
    groups_.clear();
    for (const Rows::Run& run : rows.runs) {
      const Index matrix = rows.batch * problem_.heads + run.head;
      const Index shift = run.lane - run.i;  // from a query's number to its lane
      const auto add = [&](Index start, Index stop, int pool, void* out, Index at) {
        const Index from = std::max(start, run.i), to = std::min(stop, run.i + run.count);
        if (from < to)
          groups_.push_back({from + shift, to + shift, pool, static_cast<T*>(out) + at, 0});
      };
      if (results_.received)
        add(problem_.L - results_.received_rows, problem_.L, -1, results_.received,
            matrix * problem_.S);
      for (size_t p = 0; p < results_.pools.size(); p++) {
        const Pool& pool = results_.pools[p];
        const Index queries = Index(pool.queries.size()), keys = Index(pool.keys.size());
        for (Index q = 0; q < queries; q++)
          add(pool.queries[q].start, pool.queries[q].stop, int(p), pool.out,
              (matrix * queries + q) * keys);
      }
    }
  }

  // Each group's weights, summed over its rows: group_sums_[group][segment]. W segments of W rows
  // at a time are turned, after which rows are whole vectors and a group is a run of them. Groups
  // that are all of the strip share one sum, and the vectors of a segment are added before turning.
  void sum_groups(const T* maximum, const T* scale, bool alike) {
    if (groups_.empty()) return;
    const Index count = padded(cuts_.count());
    for (size_t g = 0; g < groups_.size(); g++) groups_[g].sums = alike ? 0 : g * count;
    group_sums_.assign(alike ? count : groups_.size() * count, T(0));
    for (size_t block = 0; block < used_.size(); block++) {
      if (!used_[block]) continue;
      Vec<T> factor[NV];
      for (int v = 0; v < NV; v++) factor[v] = exchanged(block, v, maximum, scale);
      for (Index n = cuts_.first[block]; n < cuts_.first[block + 1]; n += W) {
        if (alike)
          add_whole(factor, block, n);
        else
          for (int v = 0; v < NV; v++) add_to_groups(factor[v], block, n, v);
      }
    }
  }

  // What a block's mass is multiplied with.
  Vec<T> exchanged(size_t block, int v, const T* maximum, const T* scale) const {
    const Vec<T> then = load(&maximum_[block * R + v * W]), now = load(maximum + v * W);
    const Vec<T> s = load(scale + v * W);
    // A row that is not counted, or saw nothing yet, adds nothing whatever its mass holds.
    // One that saw only NaN has no maximum, and gives NaN wherever its mass is not 0.
    const Vec<T> change = then == -kInf<T> ? Vec<T>{} : then - now;
    return s == T(0) ? Vec<T>{} : exp<T>(change) * s;
  }

  Vec<T> weighed(Index segment, int v, Vec<T> factor) const {
    const Vec<T> mass = load(&mass_[segment * R + v * W]);
    const auto nothing = (factor == T(0)) | (mass == T(0));
    return nothing ? Vec<T>{} : mass * factor;
  }

  void add_whole(const Vec<T> (&factor)[NV], size_t block, Index n) {
    const Index end = cuts_.first[block + 1];
    Vec<T> square[W] = {};
    for (Index i = 0; i < std::min(W, end - n); i++)
      for (int v = 0; v < NV; v++) square[i] += weighed(n + i, v, factor[v]);
    transpose<T>(square);
    for (Index i = 1; i < W; i++) square[0] += square[i];
    store<T>(&group_sums_[n], load(&group_sums_[n]) + square[0]);
  }

  void add_to_groups(Vec<T> factor, size_t block, Index n, int v) {
    const Index end = cuts_.first[block + 1], lane = v * W;
    Vec<T> square[W] = {};
    for (Index i = 0; i < std::min(W, end - n); i++) square[i] = weighed(n + i, v, factor);
    transpose<T>(square);
    for (const Group& group : groups_) {
      const Index from = std::max(group.from, lane), to = std::min(group.to, lane + W);
      if (from >= to) continue;
      T* at = &group_sums_[group.sums + n];
      Vec<T> sum = load(at);
      for (Index row = from; row < to; row++) sum += square[row - lane];
      store(at, sum);
    }
  }

  void add_group(const Group& group, const T* sums) const {
    if (group.pool < 0) {
      for (Index j = 0; j < problem_.S; j++) group.out[j] += sums[j];
      return;
    }
    const auto& spans = cuts_.pools[group.pool];
    for (size_t c = 0; c < spans.size(); c++)
      for (Index n = spans[c].start; n < spans[c].stop; n++) group.out[c] += sums[n];
  }

  static Index padded(Index n) { return n + W; }  // a vector may begin at any segment

  const Problem& problem_;
  const Results& results_;
  const Cuts& cuts_;
  Room<Int<T>> peak_;
  Room<T> top_;
  Room<Int<T>> top_keys_;
  Room<T> mass_, maximum_;
  std::vector<char> used_;
  std::vector<Group> groups_;
  Room<T> group_sums_;
};
