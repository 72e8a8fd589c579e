// RMSNorm, rotary positions, and attention over a paged cache: online softmax, everything summed in f32.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"

namespace bedside {

constexpr int kBlock = 32;       // tokens in a block of the cache
constexpr int kQueryRows = 32;   // query rows (heads x tokens) that walk through the keys together

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

// One layer's keys or values: [block][kv head][kBlock][head dim], f32 or bf16.
struct Cache {
  void* data = nullptr;
  bool is_bf16 = false;
  int num_kv_heads = 0, head_dim = 0;

  long offset(int block, int head, int slot) const {
    return ((static_cast<long>(block) * num_kv_heads + head) * kBlock + slot) * head_dim;
  }
  void write(int block, int head, int slot, const float* values) const {
    const long at = offset(block, head, slot);
    if (is_bf16) {
      uint16_t* out = static_cast<uint16_t*>(data) + at;
      for (int i = 0; i < head_dim; ++i) out[i] = to_bf16(values[i]);
    } else {
      std::copy_n(values, head_dim, static_cast<float*>(data) + at);
    }
  }
  // A block's rows [kBlock, head_dim] in f32: in place, or widened into `space`.
  const float* read(int block, int head, int num, float* space) const {
    const long at = offset(block, head, 0);
    if (!is_bf16) return static_cast<const float*>(data) + at;
    const uint16_t* from = static_cast<const uint16_t*>(data) + at;
    for (int i = 0; i < num * head_dim; i += 16) store(space + i, load_bf16(from + i));
    return space;
  }
};

struct AttentionSpace {
  std::vector<float> keys, values;
  explicit AttentionSpace(int head_dim) : keys(kBlock * head_dim), values(kBlock * head_dim) {}
};

// One row's softmax over what it has seen so far, taken further by a block: Milakov & Gimelshein, arXiv 1805.02867.
inline void add_values(const float* values, int seen, int C, float* scores, float* out, float& highest, float& total) {
  float top = highest;
  for (int s = 0; s < seen; ++s) top = std::max(top, scores[s]);
  for (int s = seen; s < kBlock; ++s) scores[s] = -std::numeric_limits<float>::infinity();
  const float shrink = std::exp(highest - top);
  highest = top;
  const f32x16 first = exp(load(scores) - top), second = exp(load(scores + 16) - top);
  store(scores, first);
  store(scores + 16, second);
  float added = 0;
  for (int s = 0; s < seen; ++s) added += scores[s];
  total = total * shrink + added;
  for (int c = 0; c < C; c += 16) {
    f32x16 sums = load(out + c) * shrink;
    for (int s = 0; s < seen; ++s) sums += scores[s] * load(values + s * C + c);
    store(out + c, sums);
  }
}

// Attention of some query rows of one kv head, all of one sequence. queries and outputs: num_rows pointers to
// [head_dim]; visible[r]: how many positions row r may see, its own included. head_dim is a multiple of 16.
inline void attend(const Cache& keys, const Cache& values, int head, const int32_t* block_table, int num_rows,
                   const float* const* queries, float* const* outputs, const int32_t* visible, AttentionSpace& space) {
  const int C = keys.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(C));
  float highest[kQueryRows], total[kQueryRows];
  int longest = 0;
  for (int r = 0; r < num_rows; ++r) {
    highest[r] = -std::numeric_limits<float>::infinity();
    total[r] = 0;
    std::fill_n(outputs[r], C, 0.0f);
    longest = std::max(longest, visible[r]);
  }
  for (int start = 0; start < longest; start += kBlock) {
    const int block = block_table[start / kBlock], num = std::min(kBlock, longest - start);
    const float* k = keys.read(block, head, num, space.keys.data());
    const float* v = values.read(block, head, num, space.values.data());
    // Every row by the same sums in the same order, whoever shares the walk: a token's result depends on itself alone.
    float scores[kQueryRows][kBlock];
    for (int s = 0; s < num; ++s) {
      for (int r = 0; r < num_rows; ++r) {
        f32x16 products{};
        for (int c = 0; c < C; c += 16) products += load(queries[r] + c) * load(k + s * C + c);
        scores[r][s] = sum(products) * scale;
      }
    }
    for (int r = 0; r < num_rows; ++r) {
      const int seen = std::min(num, visible[r] - start);
      if (seen > 0) add_values(v, seen, C, scores[r], outputs[r], highest[r], total[r]);
    }
  }
  for (int r = 0; r < num_rows; ++r) {
    const float inverse = 1.0f / total[r];
    for (int c = 0; c < C; ++c) outputs[r][c] *= inverse;
  }
}

}  // namespace bedside
