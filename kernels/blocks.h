// The keys or values of a problem, block by block: in place where they are T, else the last block
// that was asked for, converted once for all strips that take turns on it; for tiles, packed once.
// Included inside each ISA's namespace.
template <class T>
class Blocks {
 public:
  Blocks(const Tensor& tensor, Index rows, Index columns, Index size)
      : tensor_(tensor),
        rows_(rows),
        columns_(columns),
        size_(size),
        blocks_((rows + size - 1) / size),
        in_place_(tensor.dtype == (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32)),
        rows16_(size, columns, tensor.dtype),
        finite_(tensor.offsets.size() * blocks_) {}

  // Row i of a matrix, and those after it in its block.
  Block<T> from(Index matrix, Index i) {
    if (in_place_)
      return {reinterpret_cast<const T*>(tensor_.at(matrix, i, 0)), tensor_.row, tensor_.column};
    const Index first = enter(matrix, i);
    if (!converted_) {
      room_.resize(size_ * columns_);
      for (Index n = first; n < std::min(first + size_, rows_); n++)
        read_row(tensor_, matrix, n, columns_, room_.data() + (n - first) * columns_);
    }
    converted_ = true;
    return {room_.data() + (i - first) * columns_, columns_, 1};
  }

  // As left factors: rows from i on, which begins a tile; or, turned, all columns, from row i on.
  tiles::Factor left(Index matrix, Index i) {
    const Index depths = rows16_.width() / Tile::kDepth, first = enter(matrix, i);
    if (!packed_) {
      tiles_.resize(Tile::sides(size_) * depths);
      pack<false, false>(rows16_, gather(matrix, first), tiles_.data(), depths);
    }
    packed_ = true;
    return {tiles_.data() + (i - first) / Tile::kSide * depths, depths,
            rows16_.second() / Tile::kDepth};
  }
  tiles::Factor left_turned(Index matrix, Index i) {
    const Index depths = Tile::depths(size_), first = enter(matrix, i);
    if (!turned_) {
      turned_tiles_.resize(rows16_.width() / Tile::kSide * depths);
      pack<true, true>(rows16_, gather(matrix, first), turned_tiles_.data(), depths);
    }
    turned_ = true;
    return {turned_tiles_.data() + (i - first) / Tile::kDepth, depths,
            rows16_.second() / Tile::kSide * depths};
  }

  // Whether the whole block of row i is finite: found once for all strips of a thread.
  bool finite(Index matrix, Index i) {
    return known(matrix, i, [&](Index first, Index count) {
      return from(matrix, first).finite(count, columns_);
    });
  }
  // The same of what is packed of it: rounded to bfloat16, great numbers are infinite.
  bool finite_packed(Index matrix, Index i) {
    return known(matrix, i,
                 [&](Index first, Index) { return rows16_.finite(gather(matrix, first)); });
  }

 private:
  template <class Find>
  bool known(Index matrix, Index i, Find find) {
    uint8_t& finite = finite_[matrix * blocks_ + i / size_];
    const Index first = i / size_ * size_;
    if (!finite) finite = find(first, std::min(size_, rows_ - first)) ? 1 : 2;
    return finite == 1;
  }

  Index enter(Index matrix, Index i) {
    const Index first = i / size_ * size_;
    if (matrix != matrix_ || first != first_) {
      matrix_ = matrix;
      first_ = first;
      converted_ = gathered_ = packed_ = turned_ = false;
    }
    return first;
  }

  // How many rows of 16 bits the block from row `first` on has, which are brought together.
  Index gather(Index matrix, Index first) {
    enter(matrix, first);
    const Index count = std::min(size_, rows_ - first);
    if (!gathered_)
      for (Index n = 0; n < count; n++) rows16_.set(n, tensor_, matrix, first + n);
    gathered_ = true;
    return count;
  }

  const Tensor& tensor_;
  Index rows_, columns_, size_, blocks_;
  bool in_place_;
  Room<T> room_;
  Rows16 rows16_;
  Room<Tile> tiles_, turned_tiles_;
  Index matrix_ = -1, first_ = -1;  // the block at hand, and what was done with it
  bool converted_ = false, gathered_ = false, packed_ = false, turned_ = false;
  std::vector<uint8_t> finite_;  // per matrix and block: 1 or 2 once it is known
};
