// The choice of experts: sigmoid scores, the best groups by their two best biased scores, the best experts in them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace bedside {

struct Routing {
  int num_experts = 0, num_groups = 1, top_groups = 1, top_k = 1;
  float scale = 1;
};

// logits and bias [num_experts]; ids and weights [top_k] come best first.
inline void route(const Routing& r, const float* logits, const float* bias, int32_t* ids, float* weights) {
  const int size = r.num_experts / r.num_groups;
  constexpr float kOut = -std::numeric_limits<float>::infinity();
  thread_local std::vector<float> scores, choice, group_score;
  scores.resize(r.num_experts);
  choice.resize(r.num_experts);
  group_score.assign(r.num_groups, 0);
  for (int e = 0; e < r.num_experts; ++e) {
    scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    choice[e] = scores[e] + bias[e];
  }
  if (r.top_groups < r.num_groups) {
    for (int g = 0; g < r.num_groups; ++g) {
      float best = kOut, second = size > 1 ? kOut : 0.0f;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        if (choice[e] > best) {
          if (size > 1) second = best;
          best = choice[e];
        } else if (size > 1 && choice[e] > second) {
          second = choice[e];
        }
      }
      group_score[g] = best + second;
    }
    for (int kept = 0; kept < r.num_groups; ++kept) {
      const int g = static_cast<int>(std::max_element(group_score.begin(), group_score.end()) - group_score.begin());
      // -inf, not 0, shuts a group out: with negative biases a 0 would win.
      if (kept >= r.top_groups) std::fill_n(choice.begin() + g * size, size, kOut);
      group_score[g] = kOut;
    }
  }
  float total = 0;
  for (int k = 0; k < r.top_k; ++k) {
    const int best = static_cast<int>(std::max_element(choice.begin(), choice.end()) - choice.begin());
    ids[k] = best;
    weights[k] = scores[best];
    total += scores[best];
    choice[best] = kOut;
  }
  const float factor = r.scale / (r.top_k > 1 ? total + 1e-20f : 1.0f);
  for (int k = 0; k < r.top_k; ++k) weights[k] *= factor;
}

}  // namespace bedside
