// Vectors of 16 floats by the compiler's own extension: one AVX-512 register, or two of AVX2.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace bedside {

typedef float f32x16 __attribute__((vector_size(64), aligned(4)));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4)));
typedef uint16_t u16x16 __attribute__((vector_size(32), aligned(2)));

inline f32x16 load(const float* p) { return *reinterpret_cast<const f32x16*>(p); }
inline void store(float* p, f32x16 v) { *reinterpret_cast<f32x16*>(p) = v; }
inline f32x16 splat(float value) { return f32x16{} + value; }

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// bf16 is the upper half of an f32.
inline float from_bf16(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}
inline f32x16 load_bf16(const uint16_t* p) {
#if defined(__AVX512F__)  // one instruction, where the compiler would take four
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return reinterpret_cast<f32x16>(_mm512_slli_epi32(wide, 16));
#else
  u32x16 wide = __builtin_convertvector(*reinterpret_cast<const u16x16*>(p), u32x16) << 16;
  return reinterpret_cast<f32x16>(wide);
#endif
}
// 16 values of whatever weights and cached keys are stored as.
inline f32x16 load_element(const float* p) { return load(p); }
inline f32x16 load_element(const uint16_t* p) { return load_bf16(p); }
inline f32x16 load_element(const int8_t* p) {
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return reinterpret_cast<f32x16>(_mm512_cvtepi32_ps(wide));
#else
  typedef int8_t i8x16 __attribute__((vector_size(16), aligned(1)));
  return __builtin_convertvector(*reinterpret_cast<const i8x16*>(p), f32x16);
#endif
}

// Round to nearest, ties to even, as torch does; NaN stays NaN.
inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Halves added to halves: a loop over lanes would take longer than the product of a short row.
inline float sum(f32x16 v) {
  typedef float f32x8 __attribute__((vector_size(32)));
  typedef float f32x4 __attribute__((vector_size(16)));
  const f32x8 eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const f32x4 four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float max(f32x16 v) {
  typedef float f32x8 __attribute__((vector_size(32)));
  typedef float f32x4 __attribute__((vector_size(16)));
  const f32x8 low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  const f32x8 high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  const f32x8 eight = low > high ? low : high;
  const f32x4 a = __builtin_shufflevector(eight, eight, 0, 1, 2, 3), b = __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  const f32x4 four = a > b ? a : b;
  return std::max(std::max(four[0], four[1]), std::max(four[2], four[3]));
}

// e^x to about 2 ulp: x = n ln 2 + r, a polynomial for e^r, n into the exponent (Cephes expf).
inline f32x16 exp(f32x16 x) {
  const f32x16 low = splat(-87.3f), high = splat(88.7f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  f32x16 shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits hold round(x / ln 2)
  f32x16 n = shifted - 12582912.0f;
  f32x16 r = x - n * 0.693359375f + n * 2.12194440e-4f;
  f32x16 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  i32x16 exponent = (__builtin_convertvector(n, i32x16) + 127) << 23;
  return p * reinterpret_cast<f32x16>(exponent);
}
inline f32x16 silu(f32x16 x) { return x / (1.0f + exp(-x)); }

}  // namespace bedside
