// A mask as one strip of queries meets it: whole blocks of keys are answered all, none or some, and
// only "some" is written out lane by lane. Included inside each ISA's namespace.

enum class Sight { none, some, all };

// The rows of one strip: consecutive queries of one or more heads that share keys and values.
// Rows past `rows` are lanes without a query; no result is taken from them.
struct Rows {
  struct Run {
    Index head, i, lane, count;  // `count` lanes from `lane` on are queries i, i + 1, ... of head
  };
  Index batch = 0, rows = 0;
  std::vector<Run> runs;
};

// All that a mask knows about one strip.
template <class T>
class StripMask {
 public:
  StripMask(const Problem& problem, Index lanes, Index block) : problem_(problem), lanes_(lanes) {
    for (const MaskNode& node : problem.mask) {
      State& state = states_.emplace_back();
      if (node.kind == MaskNode::band) {
        state.low.resize(lanes);
        state.high.resize(lanes);
      } else if (node.kind == MaskNode::both || node.kind == MaskNode::either) {
        state.tile.resize(block * lanes);
      } else {
        state.id.resize(lanes);
      }
    }
  }

  bool empty() const { return problem_.mask.empty(); }

  void enter(const Rows& rows) {
    rows_ = &rows;
    for (size_t n = 0; n < states_.size(); n++) enter(problem_.mask[n], states_[n]);
  }

  // Keys outside [first, last) are hidden from the whole strip.
  Index first() const { return empty() ? 0 : states_.back().first; }
  Index last() const { return empty() ? problem_.S : states_.back().last; }

  // How much of keys [j0, j1) the strip may see.
  Sight sight(Index j0, Index j1) {
    return empty() ? Sight::all : sight(int(states_.size()) - 1, j0, j1);
  }

  // After sight answered "some" of keys [j0, j1): without those at both ends that every query sees,
  // in steps.
  void trim(Index& j0, Index& j1) {
    constexpr Index kStep = 16;
    while (j1 - j0 > kStep && sight(j0, j0 + kStep) == Sight::all) j0 += kStep;
    while (j1 - j0 > kStep && sight(j1 - kStep, j1) == Sight::all) j1 -= kStep;
    sight(j0, j1);  // what write goes by
  }

  // tile[key][lane]: all bits set where visible. Only after sight answered "some".
  void write(Index j0, Index j1, Int<T>* tile) { write(int(states_.size()) - 1, j0, j1, tile); }

 private:
  struct State {
    Room<Int<T>> low, high;  // band: visible when low <= j < high
    Room<Int<T>> id;         // documents: the lane's; padding: whether the query is real
    Room<Int<T>> tile;       // both, either: room for the second child
    Index low_least = 0, low_most = 0, high_least = 0, high_most = 0;
    Index id_least = 0, id_most = 0;
    Index first = 0, last = 0;  // keys outside are hidden from the strip
    Sight sight = Sight::none;  // of the block at hand
  };

  void enter(const MaskNode& node, State& state) {
    const Index b = rows_->batch;
    const Index none = 0, every = problem_.S;
    for (const Rows::Run& run : rows_->runs)
      for (Index n = 0; n < run.count; n++) {
        const Index lane = run.lane + n, i = problem_.row + run.i + n;
        if (node.kind == MaskNode::band) {
          Index low = node.low.empty() ? none : i + node.low[b];
          Index high = node.high.empty() ? (node.first.empty() ? every : none) : i + node.high[b];
          if (!node.first.empty()) high = std::max(high, node.first[b]);
          state.low[lane] = Int<T>(std::clamp(low, none, every));
          state.high[lane] = Int<T>(std::clamp(high, none, every));
        } else if (node.kind == MaskNode::documents) {
          state.id[lane] = Int<T>(node.query_ids[b][i]);
        } else if (node.kind == MaskNode::padding) {
          state.id[lane] = node.query_flags.empty() || node.query_flags[b][i] ? -1 : 0;
        }
      }
    const Index rows = rows_->rows;
    state.first = none;
    state.last = every;
    if (node.kind == MaskNode::band) {
      bounds(state.low, rows, state.low_least, state.low_most);
      bounds(state.high, rows, state.high_least, state.high_most);
      state.first = state.low_least;
      state.last = state.high_most;
    } else if (!state.id.empty()) {
      bounds(state.id, rows, state.id_least, state.id_most);
    } else if (node.kind == MaskNode::both) {
      state.first = std::max(states_[node.a].first, states_[node.b].first);
      state.last = std::min(states_[node.a].last, states_[node.b].last);
    } else if (node.kind == MaskNode::either) {
      state.first = std::min(states_[node.a].first, states_[node.b].first);
      state.last = std::max(states_[node.a].last, states_[node.b].last);
    }
  }

  // Least and most over the rows; the lanes without a query follow the last one.
  static void bounds(Room<Int<T>>& lanes, Index rows, Index& least, Index& most) {
    least = most = lanes[0];
    for (Index r = 1; r < rows; r++) {
      least = std::min<Index>(least, lanes[r]);
      most = std::max<Index>(most, lanes[r]);
    }
    for (size_t r = rows; r < lanes.size(); r++) lanes[r] = lanes[rows - 1];
  }

  Sight sight(int n, Index j0, Index j1) {
    const MaskNode& node = problem_.mask[n];
    State& state = states_[n];
    switch (node.kind) {
      case MaskNode::band:
        state.sight = sight_of_band(state, j0, j1);
        break;
      case MaskNode::padding:
        state.sight = sight_of_padding(node, state, j0, j1);
        break;
      case MaskNode::documents:
        state.sight = sight_of_documents(node, state, j0, j1);
        break;
      case MaskNode::dense:
        state.sight = sight_of_dense(node, j0, j1);
        break;
      case MaskNode::both: {
        Sight a = sight(node.a, j0, j1);
        state.sight = a == Sight::none ? a : std::min(a, sight(node.b, j0, j1));
        break;
      }
      case MaskNode::either: {
        Sight a = sight(node.a, j0, j1);
        state.sight = a == Sight::all ? a : std::max(a, sight(node.b, j0, j1));
        break;
      }
    }
    return state.sight;
  }

  static Sight sight_of_band(const State& state, Index j0, Index j1) {
    if (j1 <= state.low_least || j0 >= state.high_most) return Sight::none;
    return j0 >= state.low_most && j1 <= state.high_least ? Sight::all : Sight::some;
  }

  Sight sight_of_padding(const MaskNode& node, const State& state, Index j0, Index j1) const {
    const uint8_t* flags = node.key_flags[rows_->batch];
    Index real = 0;
    for (Index j = j0; j < j1; j++) real += flags[j] != 0;
    if (real == 0 || state.id_least == state.id_most) {
      if (real == 0 || state.id_most == 0) return Sight::none;
      if (real == j1 - j0) return Sight::all;
    }
    return Sight::some;
  }

  Sight sight_of_documents(const MaskNode& node, const State& state, Index j0, Index j1) const {
    const int32_t* ids = node.key_ids[rows_->batch];
    auto [least, most] = std::minmax_element(ids + j0, ids + j1);
    if (*most < state.id_least || *least > state.id_most) return Sight::none;
    bool one = state.id_least == state.id_most && *least == *most;
    return one ? Sight::all : Sight::some;
  }

  Sight sight_of_dense(const MaskNode& node, Index j0, Index j1) const {
    bool seen = false, hidden = false;
    for (const Rows::Run& run : rows_->runs)
      for (Index n = 0; n < run.count; n++) {
        const uint8_t* bytes = dense_row(node, run, n);
        Index count = 0;
        if (node.column == 1)
          for (Index j = j0; j < j1; j++) count += bytes[j] != 0;
        else
          for (Index j = j0; j < j1; j++) count += bytes[j * node.column] != 0;
        seen |= count > 0;
        hidden |= count < j1 - j0;
        if (seen && hidden) return Sight::some;
      }
    return seen ? Sight::all : Sight::none;
  }

  const uint8_t* dense_row(const MaskNode& node, const Rows::Run& run, Index n) const {
    const Index matrix = rows_->batch * problem_.heads + run.head;
    return node.bytes + node.offsets[matrix] + (problem_.row + run.i + n) * node.row;
  }

  void write(int n, Index j0, Index j1, Int<T>* tile) {
    typedef Vec<Int<T>> Lanes;
    const MaskNode& node = problem_.mask[n];
    const State& state = states_[n];
    const Index b = rows_->batch;
    auto fill = [&](auto seen) {
      for (Index j = j0; j < j1; j++)
        for (Index lane = 0; lane < lanes_; lane += kWidth<T>)
          store<Int<T>>(tile + (j - j0) * lanes_ + lane, seen(j, lane));
    };
    if (state.sight != Sight::some) {
      Lanes same = splat<Int<T>>(state.sight == Sight::all ? -1 : 0);
      return fill([&](Index, Index) { return same; });
    }
    switch (node.kind) {
      case MaskNode::band:
        return fill([&](Index j, Index lane) -> Lanes {
          Lanes at = splat(Int<T>(j));
          return (at >= load(&state.low[lane])) & (at < load(&state.high[lane]));
        });
      case MaskNode::padding:
        return fill([&](Index j, Index lane) -> Lanes {
          return node.key_flags[b][j] ? load(&state.id[lane]) : Lanes{};
        });
      case MaskNode::documents:
        return fill([&](Index j, Index lane) -> Lanes {
          return load(&state.id[lane]) == splat(Int<T>(node.key_ids[b][j]));
        });
      case MaskNode::dense:
        return write_dense(node, j0, j1, tile);
      case MaskNode::both:
      case MaskNode::either:
        return write_pair(n, j0, j1, tile);
    }
  }

  void write_dense(const MaskNode& node, Index j0, Index j1, Int<T>* tile) const {
    for (const Rows::Run& run : rows_->runs)
      for (Index n = 0; n < run.count; n++) {
        const uint8_t* bytes = dense_row(node, run, n);
        for (Index j = j0; j < j1; j++)
          tile[(j - j0) * lanes_ + run.lane + n] = bytes[j * node.column] ? -1 : 0;
      }
    for (Index j = 0; j < j1 - j0; j++)
      for (Index lane = rows_->rows; lane < lanes_; lane++) tile[j * lanes_ + lane] = 0;
  }

  void write_pair(int n, Index j0, Index j1, Int<T>* tile) {
    const MaskNode& node = problem_.mask[n];
    Room<Int<T>>& other = states_[n].tile;
    write(node.a, j0, j1, tile);
    write(node.b, j0, j1, other.data());
    const bool both = node.kind == MaskNode::both;
    for (Index n = 0; n < (j1 - j0) * lanes_; n++)
      tile[n] = both ? tile[n] & other[n] : tile[n] | other[n];
  }

  const Problem& problem_;
  const Index lanes_;
  const Rows* rows_ = nullptr;
  std::vector<State> states_;
};
