// RMSNorm, rotary positions, and attention over a paged cache: online softmax, everything summed in f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd.h"

namespace bedside {

constexpr int kBlock = 32;       // tokens in a block of the cache
constexpr int kQueryRows = 32;   // query rows (heads x tokens) that walk through the keys together
constexpr int kSegment = 512;    // positions that are summed by themselves, so that many threads can share one row
#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 8;  // as many as there are registers for their sums
#else
constexpr int kRowsAtOnce = 2;
#endif

inline void rms_norm(const float* x, const float* weight, float eps, int size, float* out) {
  f32x16 squares{};
  int i = 0;
  for (; i + 16 <= size; i += 16) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < size; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(size) + eps);
  for (i = 0; i < size; ++i) out[i] = x[i] * scale * weight[i];
}

// Turns the first 2 x half dims: (a, b) -> (a cos - b sin, b cos + a sin).
inline void rotate(float* x, const float* cosines, const float* sines, int half) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

// --- the cache ----------------------------------------------------------------------------------------------------

enum CacheKind : int32_t { kCacheF32 = 0, kCacheBF16 = 1, kCacheInt8 = 2 };

// Keys and values of one block and head.
struct Slabs {
  uint8_t *keys = nullptr, *values = nullptr;
};

// One layer's keys and values. A block holds for each kv head a slab of kBlock x head_dim elements. Keys lie with the
// positions across the lanes, [head dim][kBlock], so that a walk through the dims gives 16 scores at a time without
// adding up lanes; values as [kBlock][head dim]. int8 slabs end with a scale for each position, [kBlock] f32.
struct Cache {
  uint8_t *keys = nullptr, *values = nullptr;
  CacheKind kind = kCacheF32;
  int num_kv_heads = 0, head_dim = 0;

  long slab_bytes() const {
    const long elements = static_cast<long>(kBlock) * head_dim;
    return kind == kCacheF32 ? elements * 4 : kind == kCacheBF16 ? elements * 2 : elements + kBlock * 4;
  }
  uint8_t* slab(uint8_t* data, int block, int head) const {
    return data + (static_cast<long>(block) * num_kv_heads + head) * slab_bytes();
  }
  Slabs find(const int32_t* block_table, int position, int head) const {
    const int block = block_table[position / kBlock];
    return {slab(keys, block, head), slab(values, block, head)};
  }
  float* scales(uint8_t* slab) const { return reinterpret_cast<float*>(slab + static_cast<long>(kBlock) * head_dim); }

  void write(int block, int head, int slot, const float* key, const float* value) const {
    write_to(slab(keys, block, head), slot, kBlock, slot, key);
    write_to(slab(values, block, head), slot * head_dim, 1, slot, value);
  }

 private:
  void write_to(uint8_t* slab, int first, int stride, int slot, const float* from) const {
    if (kind == kCacheF32) {
      float* out = reinterpret_cast<float*>(slab) + first;
      for (int c = 0; c < head_dim; ++c) out[static_cast<long>(c) * stride] = from[c];
    } else if (kind == kCacheBF16) {
      uint16_t* out = reinterpret_cast<uint16_t*>(slab) + first;
      for (int c = 0; c < head_dim; ++c) out[static_cast<long>(c) * stride] = to_bf16(from[c]);
    } else {
      float largest = 0;
      for (int c = 0; c < head_dim; ++c) largest = std::max(largest, std::fabs(from[c]));
      // What is not a number may not become one: its scale is passed on.
      const bool is_finite = std::isfinite(sum_of(from));
      const float inverse = largest > 0 && is_finite ? 127.0f / largest : 0.0f;
      int8_t* out = reinterpret_cast<int8_t*>(slab) + first;
      for (int c = 0; c < head_dim; ++c) out[static_cast<long>(c) * stride] = static_cast<int8_t>(std::lrintf(is_finite ? from[c] * inverse : 0.0f));
      scales(slab)[slot] = is_finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
    }
  }
  float sum_of(const float* from) const {
    float total = 0;
    for (int c = 0; c < head_dim; ++c) total += from[c];
    return total;
  }
};

// Prefetches the lines that `Num` elements from `at` on begin or fill; nothing where there is no data.
template <int Num, typename T>
inline void ask_for(const T* data, long at) {
  if (!data) return;
  constexpr int kBytes = Num * static_cast<int>(sizeof(T));
  if (kBytes < 64 && at * static_cast<long>(sizeof(T)) % 64) return;
  for (int byte = 0; byte < kBytes; byte += 64) prefetch(reinterpret_cast<const uint8_t*>(data + at) + byte);
}

// --- softmax over the cache ---------------------------------------------------------------------------------------

// Rows that walk through the keys together, and what they have summed up so far: out[r] = sum of e^(score - highest[r])
// times value, not yet divided by total[r]. Parts are put together as in Milakov & Gimelshein, arXiv 1805.02867.
struct AttentionRows {
  int num = 0;
  const float* queries[kQueryRows];
  int32_t visible[kQueryRows];  // how many positions a row may see, its own included
  float highest[kQueryRows], total[kQueryRows];
  std::vector<float> out;  // [kQueryRows, head dim]
  float shrink[kQueryRows];
  alignas(64) float weights[kQueryRows][kBlock];

  explicit AttentionRows(int head_dim) : out(static_cast<size_t>(kQueryRows) * head_dim) {}
  void restart(int head_dim) {
    std::fill_n(highest, num, -std::numeric_limits<float>::infinity());
    std::fill_n(total, num, 0.0f);
    std::fill_n(out.begin(), static_cast<size_t>(num) * head_dim, 0.0f);
  }
  void divide(int r, int head_dim, float* to) const {
    const float inverse = 1.0f / total[r];
    for (int c = 0; c < head_dim; ++c) to[c] = out[static_cast<size_t>(r) * head_dim + c] * inverse;
  }
  // Adds what was summed up over later positions. Always in the order of positions, whoever computed them.
  void merge(const AttentionRows& later, int head_dim) {
    for (int r = 0; r < num; ++r) {
      const float top = std::max(highest[r], later.highest[r]);
      const float mine = std::exp(highest[r] - top), theirs = std::exp(later.highest[r] - top);
      highest[r] = top;
      total[r] = total[r] * mine + later.total[r] * theirs;
      const float* from = &later.out[static_cast<size_t>(r) * head_dim];
      float* to = &out[static_cast<size_t>(r) * head_dim];
      for (int c = 0; c < head_dim; ++c) to[c] = to[c] * mine + from[c] * theirs;
    }
  }
};

// Products of R rows with a block's keys, into scores [R, kBlock]. `next`: the keys that are read afterwards, asked for
// a line at a time, since they lie where no processor expects them and all at once they would be in the way.
template <int R, typename T>
inline void multiply_keys(const T* keys, int C, const float* const* rows, const T* next, float* scores) {
  const float* queries[R];
  f32x16 sums[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    queries[r] = rows[r];
    sums[r][0] = sums[r][1] = f32x16{};
  }
  for (int c = 0; c < C; ++c) {
    ask_for<kBlock>(next, static_cast<long>(c) * kBlock);
    const f32x16 first = load_element(keys + c * kBlock), second = load_element(keys + c * kBlock + 16);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const f32x16 query = splat(queries[r][c]);
      sums[r][0] += first * query;
      sums[r][1] += second * query;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    store(scores + r * kBlock, sums[r][0]);
    store(scores + r * kBlock + 16, sums[r][1]);
  }
}

// One row's scores of a block become weights of its values, in place. seen: how many of the positions the row may see.
inline void weigh(int row, int seen, float scale, const float* key_scales, const float* value_scales,
                  AttentionRows& rows) {
  float* weights = rows.weights[row];
  if (seen <= 0) {
    rows.shrink[row] = 1.0f;
    std::fill_n(weights, kBlock, 0.0f);
    return;
  }
  const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 is_seen[2] = {lanes < seen, lanes + 16 < seen};
  const f32x16 least = splat(-std::numeric_limits<float>::infinity()), none{};
  f32x16 first = load(weights) * scale, second = load(weights + 16) * scale;
  if (key_scales) {
    first *= load(key_scales);
    second *= load(key_scales + 16);
  }
  first = is_seen[0] ? first : least;
  second = is_seen[1] ? second : least;
  const float before = rows.highest[row], top = std::max(before, max(first > second ? first : second));
  first = is_seen[0] ? exp(first - top) : none;
  second = is_seen[1] ? exp(second - top) : none;
  rows.highest[row] = top;
  rows.shrink[row] = top == before ? 1.0f : std::exp(before - top);
  rows.total[row] = rows.total[row] * rows.shrink[row] + sum(first + second);
  if (value_scales) {  // that of a position not seen may be anything, even not a number
    first = is_seen[0] ? first * load(value_scales) : none;
    second = is_seen[1] ? second * load(value_scales + 16) : none;
  }
  store(weights, first);
  store(weights + 16, second);
}

// The weighted values of R rows, 32 dims at a time.
template <int R, typename T>
inline void add_values(const T* values, int num, int C, AttentionRows& rows, int r0, const T* next) {
  const float* weights = rows.weights[r0];
  for (int c = 0; c < C; c += 32) {
    const bool is_whole = c + 32 <= C;  // a multiple of 16, so that the last may be half
    f32x16 sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float* out = &rows.out[static_cast<size_t>(r0 + r) * C + c];
      sums[r][0] = load(out) * rows.shrink[r0 + r];
      sums[r][1] = is_whole ? load(out + 16) * rows.shrink[r0 + r] : f32x16{};
    }
    for (int s = 0; s < num; ++s) {
      ask_for<32>(next, static_cast<long>(s) * C + c);
      const T* at = values + static_cast<long>(s) * C + c;
      const f32x16 first = load_element(at), second = is_whole ? load_element(at + 16) : f32x16{};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const f32x16 weight = splat(weights[r * kBlock + s]);
        sums[r][0] += first * weight;
        sums[r][1] += second * weight;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      float* out = &rows.out[static_cast<size_t>(r0 + r) * C + c];
      store(out, sums[r][0]);
      if (is_whole) store(out + 16, sums[r][1]);
    }
  }
}

template <int R, typename T>
inline void attend_rows(const Cache& cache, Slabs at, Slabs next, int start, int num, AttentionRows& rows, int r0) {
  const bool is_int8 = cache.kind == kCacheInt8;
  const float* key_scales = is_int8 ? cache.scales(at.keys) : nullptr;
  const float* value_scales = is_int8 ? cache.scales(at.values) : nullptr;
  multiply_keys<R>(reinterpret_cast<const T*>(at.keys), cache.head_dim, rows.queries + r0,
                   reinterpret_cast<const T*>(next.keys), rows.weights[r0]);
  const float scale = 1.0f / std::sqrt(static_cast<float>(cache.head_dim));
  for (int r = r0; r < r0 + R; ++r) weigh(r, rows.visible[r] - start, scale, key_scales, value_scales, rows);
  add_values<R>(reinterpret_cast<const T*>(at.values), num, cache.head_dim, rows, r0,
                reinterpret_cast<const T*>(next.values));
}

// Positions [begin, end) of one segment, by rows of one kv head and one sequence. Every row by the same sums in the
// same order, whoever shares the walk: a token's result depends on itself alone. after: what will be read next.
template <typename T>
inline void attend_segment(const Cache& cache, int head, const int32_t* block_table, int begin, int end,
                           AttentionRows& rows, Slabs after) {
  rows.restart(cache.head_dim);
  for (int start = begin; start < end; start += kBlock) {
    const int num = std::min(kBlock, end - start);
    const Slabs at = cache.find(block_table, start, head);
    Slabs next = start + kBlock < end ? cache.find(block_table, start + kBlock, head) : after;
    int r = 0;
    const auto walk = [&](auto size) {
      constexpr int R = decltype(size)::value;
      for (; r + R <= rows.num; r += R, next = {}) attend_rows<R, T>(cache, at, next, start, num, rows, r);
    };
    walk(std::integral_constant<int, kRowsAtOnce>{});
    if constexpr (kRowsAtOnce > 4) walk(std::integral_constant<int, 4>{});
    walk(std::integral_constant<int, 1>{});
  }
}

inline void attend_segment(const Cache& cache, int head, const int32_t* block_table, int begin, int end,
                           AttentionRows& rows, Slabs after) {
  if (cache.kind == kCacheF32) {
    attend_segment<float>(cache, head, block_table, begin, end, rows, after);
  } else if (cache.kind == kCacheBF16) {
    attend_segment<uint16_t>(cache, head, block_table, begin, end, rows, after);
  } else {
    attend_segment<int8_t>(cache, head, block_table, begin, end, rows, after);
  }
}

// All positions that the rows may see, a segment after the other; `part` has the same rows and is for them.
inline void attend_all(const Cache& cache, int head, const int32_t* block_table, AttentionRows& rows,
                       AttentionRows& part, Slabs after) {
  const int longest = rows.visible[rows.num - 1];
  for (int begin = 0; begin < longest; begin += kSegment) {
    const int end = std::min(begin + kSegment, longest);
    const Slabs next = end < longest ? cache.find(block_table, end, head) : after;
    attend_segment(cache, head, block_table, begin, end, begin ? part : rows, next);
    if (begin) rows.merge(part, cache.head_dim);
  }
}

}  // namespace bedside
