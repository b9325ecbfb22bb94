// The product that everything but decoding, and bfloat16 where there are tiles, rests on. Queries
// stay in the lanes of vectors, so keys (for the scores) and values (for the context) are each read
// where they lie, a number at a time, and multiplied with a whole vector: nothing is packed and any
// strides do. A reduction over keys is then an ordinary vector operation, which is what makes
// statistics cheap. Included inside each ISA's namespace.

// M x (NV vectors) of sum over n of a[m, n] · b[n, lanes]. With 6 x 4 vectors every b loaded is
// used 6 times and every a 4 times: 10 loads for 24 multiply-adds, below what the load ports give.
template <class T, int NV, int M, class Done>
inline void product_rows(const T* a, Index across, Index along, const T* b, Index step, Index n,
                         Done done) {
  constexpr Index W = kWidth<T>;
  Vec<T> sums[M][NV] = {};
  const auto add = [&](auto number) {
    Vec<T> lanes[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) lanes[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vec<T> x = splat(number(m));
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sums[m][v] += x * lanes[v];
    }
  };
  // Steps of 1, which are the common ones, need no multiplication and fewer registers.
  if (across == 1) {
    for (Index k = 0; k < n; k++, b += step, a += along) add([&](int m) { return a[m]; });
  } else {
    const T* row[M];
    for (int m = 0; m < M; m++) row[m] = a + m * across;
    if (along == 1)
      for (Index k = 0; k < n; k++, b += step) add([&](int m) { return row[m][k]; });
    else
      for (Index k = 0; k < n; k++, b += step) add([&](int m) { return row[m][k * along]; });
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) done(m, sums[m]);
}

// The same for any number of rows of a, six at a time; done(row, vectors) takes each. Rows of b are
// `step` apart.
template <class T, int NV, class Done>
inline void product(const T* a, Index rows, Index across, Index along, const T* b, Index step,
                    Index n, Done done) {
  Index r = 0;
  const auto at = [&](int m, const Vec<T>(&sums)[NV]) { done(r + m, sums); };
  for (; r + 6 <= rows; r += 6)
    product_rows<T, NV, 6>(a + r * across, across, along, b, step, n, at);
  a += r * across;
  switch (rows - r) {
    case 5:
      return product_rows<T, NV, 5>(a, across, along, b, step, n, at);
    case 4:
      return product_rows<T, NV, 4>(a, across, along, b, step, n, at);
    case 3:
      return product_rows<T, NV, 3>(a, across, along, b, step, n, at);
    case 2:
      return product_rows<T, NV, 2>(a, across, along, b, step, n, at);
    case 1:
      return product_rows<T, NV, 1>(a, across, along, b, step, n, at);
  }
}

// Per column of a block of rows, the sum over rows of weight · number, as product() gives it; but a
// weight of 0 adds nothing, whatever the number: for blocks that hold NaN or inf.
template <class T, int NV, class Add>
inline void blend_carefully(const Block<T>& block, Index columns, const T* weights, Index rows,
                            Add add) {
  constexpr Index W = kWidth<T>;
  for (Index c = 0; c < columns; c++) {
    Vec<T> sums[NV] = {};
    for (Index j = 0; j < rows; j++)
      for (int v = 0; v < NV; v++) {
        const Vec<T> weight = load(weights + (j * NV + v) * W);
        const Vec<T> part = weight * block.data[j * block.row + c * block.column];
        sums[v] += weight == T(0) ? Vec<T>{} : part;
      }
    add(c, sums);
  }
}
