// y = x W^T for weights in INT4 groups, bf16 or f32, a tile of 16 output rows at a time.
//
// INT4: W is packed so that a tile's 16 rows lie across the lanes. For 8 columns a tile has 64 bytes: lane i holds 4,
// byte b the nibbles of columns b (low) and b + 4 (high) of row i, as q + 8. Activations are rounded to int8 in the
// same groups of columns; products are exact in int32, so the only error is that of the activations (0.4 % of a
// group's largest value at most). The same walk through memory serves one token and many.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace bedside {

constexpr int kTile = 16;
#if defined(__AVX512F__)
constexpr int kTokensAtOnce = 16;  // as many as there are registers for their sums
#else
constexpr int kTokensAtOnce = 8;
#endif
constexpr int kPrefetchBytes = 4096;
enum Kind : int32_t { kF32 = 0, kBF16 = 1, kInt4 = 2, kTiledF32 = 3, kTiledBF16 = 4 };

struct Matrix {
  int32_t kind = kF32;
  int32_t rows = 0, cols = 0;
  int32_t group = 0;                // columns that share a scale; INT4 only
  const void* data = nullptr;       // [rows, cols] of f32 or bf16, [tile][cols][16] of the same, or INT4 tiles
  const float* scales = nullptr;    // INT4: [tile][group][16], where they are not bf16
  const uint16_t* scales_bf16 = nullptr;

  int num_tiles() const { return (rows + kTile - 1) / kTile; }
  int num_groups() const { return cols / group; }
};

// Tokens are taken in blocks of 16 where there are registers for so many sums, one of 8, and what is left at once, so
// that a few tokens' weights are read from memory without a pause. Where each of `num` stands:
struct Place {
  int block, width;  // the first token of its block, and how many there are in it
};
inline Place place_of(int m, int num) {
  int block = num / kTokensAtOnce * kTokensAtOnce;
  if (m < block) return {m / kTokensAtOnce * kTokensAtOnce, kTokensAtOnce};
  if (num - block >= 8) {
    if (m < block + 8) return {block, 8};
    block += 8;
  }
  return {block, num - block};
}

// Activations of some tokens: the floats, and for INT4 weights their int8 image in groups of columns. The image lies as
// it is read: in each block the first 8 columns of all its tokens, then the next 8, and the same with the groups.
struct Rows {
  const float* x = nullptr;
  long stride = 0;
  const int8_t* q = nullptr;         // [block][cols / 8][tokens of the block][8]
  const float* q_scale = nullptr;    // [block][group][tokens of the block]
  const int32_t* q_start = nullptr;  // the same: -8 x the group's sum, where a sum begins since nibbles are q + 8
};

// Where results go: row m of y, or row index[m]; added with a weight where there is one.
struct Target {
  float* y = nullptr;
  long stride = 0;
  const int32_t* index = nullptr;
  const float* weight = nullptr;
  bool is_added = false;

  float* row(int m) const { return y + (index ? index[m] : m) * stride; }
};

// --- activations ------------------------------------------------------------------------------------------------

inline void quantize_row(const float* x, int cols, int group, int8_t* q, float* scale, int32_t* start) {
  typedef int8_t i8x16 __attribute__((vector_size(16), aligned(1)));
  for (int g = 0; g < cols / group; ++g) {
    const float* values = x + g * group;
    const int whole = group / 16 * 16;
    f32x16 tops{};
    for (int i = 0; i < whole; i += 16) {
      const f32x16 v = load(values + i), size = v < 0 ? -v : v;
      tops = size > tops ? size : tops;
    }
    float largest = 0;
    for (int lane = 0; lane < 16; ++lane) largest = std::max(largest, tops[lane]);
    for (int i = whole; i < group; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    i32x16 totals{};
    for (int i = 0; i < whole; i += 16) {
      const f32x16 v = load(values + i) * inverse;
      const i32x16 rounded = __builtin_convertvector(v + (v < 0 ? splat(-0.5f) : splat(0.5f)), i32x16);
      totals += rounded;
      *reinterpret_cast<i8x16*>(q + g * group + i) = __builtin_convertvector(rounded, i8x16);
    }
    int total = 0;
    for (int lane = 0; lane < 16; ++lane) total += totals[lane];
    for (int i = whole; i < group; ++i) {
      const int rounded = static_cast<int>(std::lround(values[i] * inverse));
      q[g * group + i] = static_cast<int8_t>(rounded);
      total += rounded;
    }
    scale[g] = largest / 127.0f;
    start[g] = -8 * total;
  }
}

// --- one tile -----------------------------------------------------------------------------------------------------

// Four u8 x s8 products a lane, summed into i32.
#if defined(__AVX512VNNI__)
inline i32x16 dot4(i32x16 sum, __m512i weights, __m512i x) {
  return reinterpret_cast<i32x16>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), weights, x));
}
using Bytes = __m512i;
inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline Bytes low_nibbles(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Bytes high_nibbles(Bytes v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), _mm512_set1_epi8(15)); }
inline Bytes splat_4_bytes(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm512_set1_epi32(word);
}
#else
struct Bytes {
  __m256i low, high;
};
inline __m256i dot4_half(__m256i sum, __m256i weights, __m256i x) {
  // Pairs fit 16 bits: 2 x 15 x 127 < 2^15.
  const __m256i pairs = _mm256_maddubs_epi16(weights, x);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline i32x16 dot4(i32x16 sum, Bytes weights, Bytes x) {
  Bytes parts;
  std::memcpy(&parts, &sum, 64);
  parts = {dot4_half(parts.low, weights.low, x.low), dot4_half(parts.high, weights.high, x.high)};
  std::memcpy(&sum, &parts, 64);
  return sum;
}
inline Bytes load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Bytes low_nibbles(Bytes v) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(v.low, mask), _mm256_and_si256(v.high, mask)};
}
inline Bytes high_nibbles(Bytes v) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(v.low, 4), mask), _mm256_and_si256(_mm256_srli_epi16(v.high, 4), mask)};
}
inline Bytes splat_4_bytes(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return {_mm256_set1_epi32(word), _mm256_set1_epi32(word)};
}
#endif

inline f32x16 load_scales(const Matrix& w, int tile, int g) {
  const long at = (static_cast<long>(tile) * w.num_groups() + g) * kTile;
  return w.scales_bf16 ? load_bf16(w.scales_bf16 + at) : load(w.scales + at);
}

// One token: four sums, since a single chain of products would wait for itself.
inline f32x16 int4_row(const Matrix& w, int tile, const Rows& rows, int m) {
  const int num_groups = w.num_groups(), chunks = w.group / 8;
  const uint8_t* bytes = static_cast<const uint8_t*>(w.data) + static_cast<long>(tile) * kTile * w.cols / 2;
  const int8_t* q = rows.q + static_cast<long>(m) * w.cols;
  const float* scale = rows.q_scale + static_cast<long>(m) * num_groups;
  const int32_t* start = rows.q_start + static_cast<long>(m) * num_groups;
  f32x16 out{};
  for (int g = 0; g < num_groups; ++g) {
    i32x16 sums[4] = {i32x16{} + start[g]};
    int c = 0;
    for (; c + 2 <= chunks; c += 2, bytes += 128, q += 16) {
      // The processor's own prefetching stops at every 4 KiB: asked for by hand, weights come up to twice as fast.
      prefetch(bytes + kPrefetchBytes);
      prefetch(bytes + kPrefetchBytes + 64);
      const Bytes first = load_bytes(bytes), second = load_bytes(bytes + 64);
      sums[0] = dot4(sums[0], low_nibbles(first), splat_4_bytes(q));
      sums[1] = dot4(sums[1], high_nibbles(first), splat_4_bytes(q + 4));
      sums[2] = dot4(sums[2], low_nibbles(second), splat_4_bytes(q + 8));
      sums[3] = dot4(sums[3], high_nibbles(second), splat_4_bytes(q + 12));
    }
    for (; c < chunks; ++c, bytes += 64, q += 8) {
      const Bytes packed = load_bytes(bytes);
      sums[0] = dot4(sums[0], low_nibbles(packed), splat_4_bytes(q));
      sums[1] = dot4(sums[1], high_nibbles(packed), splat_4_bytes(q + 4));
    }
    const f32x16 value = __builtin_convertvector((sums[0] + sums[1]) + (sums[2] + sums[3]), f32x16);
    out += value * (load_scales(w, tile, g) * scale[g]);
  }
  return out;
}

template <int M>
inline void int4_block(const Matrix& w, int tile, const Rows& rows, int m0, f32x16* out) {
  const int num_groups = w.num_groups(), chunks = w.group / 8;
  const uint8_t* bytes = static_cast<const uint8_t*>(w.data) + static_cast<long>(tile) * kTile * w.cols / 2;
  const int8_t* q = rows.q + static_cast<long>(m0) * w.cols;
  const float* scale = rows.q_scale + static_cast<long>(m0) * num_groups;
  const int32_t* start = rows.q_start + static_cast<long>(m0) * num_groups;
  for (int m = 0; m < M; ++m) out[m] = f32x16{};
  for (int g = 0; g < num_groups; ++g) {
    i32x16 sums[M], more[M <= 4 ? M : 1] = {};
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums[m] = i32x16{} + start[g * M + m];
    for (int c = 0; c < chunks; ++c, bytes += 64, q += 8 * M) {
      prefetch(bytes + kPrefetchBytes);
      const Bytes packed = load_bytes(bytes);
      const Bytes low = low_nibbles(packed), high = high_nibbles(packed);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        sums[m] = dot4(sums[m], low, splat_4_bytes(q + 8 * m));
        i32x16& second = M <= 4 ? more[m] : sums[m];
        second = dot4(second, high, splat_4_bytes(q + 8 * m + 4));
      }
    }
    const f32x16 weight_scale = load_scales(w, tile, g);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const i32x16 total = M <= 4 ? sums[m] + more[m] : sums[m];
      out[m] += __builtin_convertvector(total, f32x16) * (weight_scale * scale[g * M + m]);
    }
  }
}

// Plain weights: 4 rows by M tokens of running sums.
template <int M, typename Element>
inline void plain_block(const Element* data, const Matrix& w, int tile, const Rows& rows, int m0, f32x16* out) {
  for (int r = 0; r < kTile; r += 4) {
    f32x16 sums[4][M] = {};
    const Element* row[4];
    for (int i = 0; i < 4; ++i) row[i] = data + static_cast<long>(std::min(tile * kTile + r + i, w.rows - 1)) * w.cols;
    const int whole = w.cols / 16 * 16;
    for (int c = 0; c < whole; c += 16) {
      f32x16 x[M];
      for (int m = 0; m < M; ++m) x[m] = load(rows.x + (m0 + m) * rows.stride + c);
      for (int i = 0; i < 4; ++i) {
        _mm_prefetch(reinterpret_cast<const char*>(row[i] + c + 4L * w.cols), _MM_HINT_T0);  // four rows on
        const f32x16 weights = load_element(row[i] + c);
        for (int m = 0; m < M; ++m) sums[i][m] += weights * x[m];
      }
    }
    for (int i = 0; i < 4; ++i) {
      for (int m = 0; m < M; ++m) {
        float total = sum(sums[i][m]);
        for (int c = whole; c < w.cols; ++c) {
          float weight;
          if constexpr (sizeof(Element) == 2) weight = from_bf16(row[i][c]); else weight = row[i][c];
          total += weight * rows.x[(m0 + m) * rows.stride + c];
        }
        out[m][r + i] = total;
      }
    }
  }
}

// Plain weights in tiles: rows across the lanes, so that no sum has to be taken over them. Four chains a token, always
// the same four, whether there is one token or many.
template <int M, typename Element>
inline void tiled_block(const Element* data, const Matrix& w, int tile, const Rows& rows, int m0, f32x16* out) {
  const Element* at = data + static_cast<long>(tile) * kTile * w.cols;
  f32x16 sums[M][4] = {};
  int c = 0;
  for (; c + 4 <= w.cols; c += 4, at += 4 * kTile) {
    for (unsigned line = 0; line < sizeof(Element); ++line) prefetch(reinterpret_cast<const char*>(at) + kPrefetchBytes + 64 * line);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const f32x16 weights = load_element(at + i * kTile);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sums[m][i] += weights * rows.x[(m0 + m) * rows.stride + c + i];
    }
  }
  for (; c < w.cols; ++c, at += kTile) {
    const f32x16 weights = load_element(at);
    for (int m = 0; m < M; ++m) sums[m][0] += weights * rows.x[(m0 + m) * rows.stride + c];
  }
  for (int m = 0; m < M; ++m) out[m] = (sums[m][0] + sums[m][1]) + (sums[m][2] + sums[m][3]);
}

template <int M>
inline void tile_block(const Matrix& w, int tile, const Rows& rows, int m0, f32x16* out) {
  if (w.kind == kInt4) {
    if constexpr (M == 1) {
      out[0] = int4_row(w, tile, rows, m0);
    } else {
      int4_block<M>(w, tile, rows, m0, out);
    }
  } else if (w.kind == kTiledBF16) {
    tiled_block<M>(static_cast<const uint16_t*>(w.data), w, tile, rows, m0, out);
  } else if (w.kind == kTiledF32) {
    tiled_block<M>(static_cast<const float*>(w.data), w, tile, rows, m0, out);
  } else if (w.kind == kBF16) {
    plain_block<M>(static_cast<const uint16_t*>(w.data), w, tile, rows, m0, out);
  } else {
    plain_block<M>(static_cast<const float*>(w.data), w, tile, rows, m0, out);
  }
}

// Calls take(m, values) for every token of the tile. The blocks are those of place_of; plain weights, which have no
// image, are multiplied with 4 tokens of a block at a time.
template <typename Take>
inline void for_tile(const Matrix& w, int tile, const Rows& rows, int num_rows, Take&& take) {
  f32x16 out[kTokensAtOnce];
  int m = 0;
  const auto block = [&](auto size) {
    constexpr int M = decltype(size)::value;
    if (w.kind == kInt4 || M <= 4) {
      tile_block<M>(w, tile, rows, m, out);
    } else {
      for (int part = 0; part + 4 <= M; part += 4) tile_block<4>(w, tile, rows, m + part, out + part);
      if constexpr (M % 4) tile_block<M % 4>(w, tile, rows, m + M / 4 * 4, out + M / 4 * 4);
    }
    for (int i = 0; i < M; ++i) take(m + i, out[i]);
    m += M;
  };
  if constexpr (kTokensAtOnce > 8) {
    while (num_rows - m >= 16) block(std::integral_constant<int, 16>{});
  }
  while (num_rows - m >= 8) block(std::integral_constant<int, 8>{});
  switch (num_rows - m) {
    case 1: return block(std::integral_constant<int, 1>{});
    case 2: return block(std::integral_constant<int, 2>{});
    case 3: return block(std::integral_constant<int, 3>{});
    case 4: return block(std::integral_constant<int, 4>{});
    case 5: return block(std::integral_constant<int, 5>{});
    case 6: return block(std::integral_constant<int, 6>{});
    case 7: return block(std::integral_constant<int, 7>{});
  }
}

inline void linear_tile(const Matrix& w, int tile, const Rows& rows, int num_rows, const Target& target) {
  const int first = tile * kTile, num = std::min(kTile, w.rows - first);
  for_tile(w, tile, rows, num_rows, [&](int m, f32x16 value) {
    if (target.weight) value *= target.weight[m];
    float* y = target.row(m) + first;
    if (num == kTile) {
      store(y, target.is_added ? load(y) + value : value);
    } else {
      for (int i = 0; i < num; ++i) y[i] = target.is_added ? y[i] + value[i] : value[i];
    }
  });
}

// --- packing ------------------------------------------------------------------------------------------------------

// Names the layout of an INT4 matrix, in both variants. A folder packed under another name is refused: whoever changes
// what pack_tile writes, or where scales lie, changes the name.
inline constexpr char kLayout[] = "int4-tiles-16x8";

// 16 rows of a row-major nibble matrix (compressed-tensors: column i in bits 4 (i % 8) of word i / 8) into a tile. Both
// are as large and lie at the same place, so that `out` may be the matrix itself.
inline void pack_tile(const uint32_t* words, int rows, int cols, int tile, uint8_t* out) {
  const long a_row = cols / 8, first = static_cast<long>(tile) * kTile;
  thread_local std::vector<uint32_t> source;
  source.assign(kTile * a_row, 0x88888888u);  // zeros, where the last tile has more rows than the matrix
  std::copy_n(words + first * a_row, std::min<long>(kTile, rows - first) * a_row, source.begin());
  out += first * cols / 2;
  for (long c = 0; c < a_row; ++c, out += 64) {
    for (int lane = 0; lane < kTile; ++lane) {
      const uint32_t word = source[lane * a_row + c];
      for (int b = 0; b < 4; ++b) {
        const uint32_t low = (word >> (4 * b)) & 15, high = (word >> (4 * (b + 4))) & 15;
        out[lane * 4 + b] = static_cast<uint8_t>(low | (high << 4));
      }
    }
  }
}

}  // namespace bedside
