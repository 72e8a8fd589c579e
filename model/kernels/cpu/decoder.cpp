// The layers of a pass in their order; see decoder.h.
#include "decoder.h"

#include "phases.h"

namespace bedside {

void Decoder::prepare(const Batch& batch, int num_threads) {
  const int T = batch.num_tokens, D = config_.hidden, C = config_.head_dim, half = config_.rotary_dim / 2;
  if (T > num_rows_) {
    num_rows_ = T;
    int inner = 0, shared = 0;
    for (const Layer& layer : layers_) {
      shared = std::max(shared, layer.mlp.gate.rows);
      if (!layer.experts.empty()) inner = std::max(inner, layer.experts[0].gate.rows);
    }
    residual_.resize(static_cast<size_t>(T) * D);
    qkv_.resize(static_cast<size_t>(T) * (config_.num_heads + 2 * config_.num_kv_heads) * C);
    router_logits_.resize(static_cast<size_t>(T) * std::max(config_.num_experts, 1));
    topk_ids_.resize(static_cast<size_t>(T) * config_.top_k);
    topk_weights_.resize(topk_ids_.size());
    sorted_tokens_.resize(topk_ids_.size());
    sorted_weights_.resize(topk_ids_.size());
    normed_.reserve(T, D);
    attended_.reserve(T, config_.num_heads * C);
    gathered_.reserve(T * config_.top_k, D);
    inner_.reserve(T * config_.top_k, inner);
    shared_inner_.reserve(T, shared);
    if (mtp.join.rows) joined_.reserve(T, 2 * D);
  }
  cos_.resize(static_cast<size_t>(T) * half);
  sin_.resize(cos_.size());
  for (int t = 0; t < T; ++t) {
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(batch.positions[t]) * inv_freq_[i];
      cos_[t * half + i] = std::cos(angle) * config_.rope_factor;
      sin_[t * half + i] = std::sin(angle) * config_.rope_factor;
    }
  }
  sequence_of_.resize(T);
  for (int s = 0; s < batch.num_sequences; ++s) {
    std::fill(sequence_of_.begin() + batch.starts[s], sequence_of_.begin() + batch.starts[s + 1], s);
  }
  while (static_cast<int>(attention_space_.size()) < 2 * num_threads) attention_space_.emplace_back(C);
  plan_attention(batch, num_threads);
}

// Who attends what. Where there are fewer groups of rows than would keep the threads busy, a few answers over long
// records, each of their segments is a task of its own.
void Decoder::plan_attention(const Batch& batch, int num_threads) {
  const int tokens_a_task = std::max(1, kQueryRows / (config_.num_heads / config_.num_kv_heads));
  attention_tasks_.clear();
  split_tasks_.clear();
  for (int s = 0; s < batch.num_sequences; ++s)
    for (int t = batch.starts[s]; t < batch.starts[s + 1]; t += tokens_a_task)
      for (int head = 0; head < config_.num_kv_heads; ++head)
        attention_tasks_.push_back({s, t, std::min(tokens_a_task, batch.starts[s + 1] - t), head, -1});
  if (static_cast<int>(attention_tasks_.size()) >= 2 * num_threads) return;
  for (AttentionTask task : attention_tasks_) {
    const int num_visible = batch.positions[task.first_token + task.num_tokens - 1] + 1;
    for (task.segment = 0; task.segment * kSegment < num_visible; ++task.segment) split_tasks_.push_back(task);
  }
  if (split_tasks_.size() == attention_tasks_.size()) split_tasks_.clear();
  while (segments_.size() < split_tasks_.size()) segments_.emplace_back(config_.head_dim);
}

void Decoder::forward(Pool& pool, const Batch& batch) {
  prepare(batch, pool.num_threads());
  const int T = batch.num_tokens, D = config_.hidden;
  pool.run([&](int thread) {
    // 1. embeddings
    pool.for_each(thread, T, [&](int t) { embed(batch.ids[t], &residual_[static_cast<size_t>(t) * D]); });
    // 2. the layers
    for (int index = 0; index < config_.num_layers; ++index) {
      if (residency && residency->has_failed()) return;  // all threads see the same: it changes between barriers only
      tap(pool, thread, batch, index);
      attention_phases(pool, thread, batch, layers_[index]);
      mlp_phases(pool, thread, batch, index);
    }
    if (residency && residency->has_failed()) return;
    tap(pool, thread, batch, config_.num_layers);
    // 3. the head
    if (batch.hidden) {
      pool.for_each(thread, T, [&](int t) {
        rms_norm(&residual_[static_cast<size_t>(t) * D], final_norm, config_.eps, D, batch.hidden + static_cast<long>(t) * D);
      });
    }
    pool.for_each(thread, batch.num_logits, [&](int m) {
      rms_norm(&residual_[static_cast<size_t>(batch.logit_rows[m]) * D], final_norm, config_.eps, D, normed_.row(m));
      normed_.finish_row(m, head, 0, batch.num_logits);
    });
    linear_phase(pool, thread, head, normed_.rows(head), batch.num_logits, {batch.logits, config_.vocab});
  });
}

void Decoder::embed(int id, float* out) const {
  const int D = config_.hidden;
  const long at = static_cast<long>(id) * D;
  if (embedding.kind == kBF16) {
    for (int i = 0; i < D; ++i) out[i] = from_bf16(static_cast<const uint16_t*>(embedding.data)[at + i]);
  } else {
    std::copy_n(static_cast<const float*>(embedding.data) + at, D, out);
  }
}

// Hands out the residual stream before a layer, if it is asked for.
void Decoder::tap(Pool& pool, int thread, const Batch& batch, int layer) {
  const long size = static_cast<long>(batch.num_tokens) * config_.hidden;
  for (int n = 0; n < batch.num_taps; ++n) {
    if (batch.tap_layers[n] != layer) continue;
    pool.for_each(thread, 1, [&](int) { std::copy_n(residual_.data(), size, batch.taps + n * size); });
  }
}

void Decoder::attention_phases(Pool& pool, int thread, const Batch& batch, Layer& layer) {
  const int T = batch.num_tokens, D = config_.hidden, C = config_.head_dim, half = config_.rotary_dim / 2;
  const int H = config_.num_heads, G = config_.num_kv_heads, width = (H + 2 * G) * C, heads_a_group = H / G;
  // 1. norm, then queries, keys and values
  pool.for_each(thread, T, [&](int t) {
    rms_norm(&residual_[static_cast<size_t>(t) * D], layer.input_norm, config_.eps, D, normed_.row(t));
    normed_.finish_row(t, layer.qkv, 0, T);
  });
  linear_phase(pool, thread, layer.qkv, normed_.rows(layer.qkv), T, {qkv_.data(), width});
  // 2. norms of heads, positions, and the cache
  pool.for_each(thread, T * G, [&](int task) {
    const int t = task / G, g = task % G;
    float* row = &qkv_[static_cast<size_t>(t) * width];
    const float *cosines = &cos_[t * half], *sines = &sin_[t * half];
    for (int h = g * heads_a_group; h < (g + 1) * heads_a_group; ++h) {
      rms_norm(row + h * C, layer.query_norm, config_.eps, C, row + h * C);
      rotate(row + h * C, cosines, sines, half);
    }
    float *key = row + (H + g) * C, *value = row + (H + G + g) * C;
    rms_norm(key, layer.key_norm, config_.eps, C, key);
    rotate(key, cosines, sines, half);
    const int position = batch.positions[t];
    const int block = batch.block_tables[static_cast<long>(sequence_of_[t]) * batch.max_blocks + position / kBlock];
    layer.cache.write(block, g, position % kBlock, key, value);
  });
  // 3. attention, and back to the residual stream
  AttentionRows &rows = attention_space_[2 * thread], &part = attention_space_[2 * thread + 1];
  if (split_tasks_.empty()) {
    pool.for_each(thread, static_cast<int>(attention_tasks_.size()),
                  [&](int number) { attend(batch, layer, attention_tasks_, number, rows, part); });
  } else {
    pool.for_each(thread, static_cast<int>(split_tasks_.size()),
                  [&](int number) { attend(batch, layer, split_tasks_, number, segments_[number], part); });
    pool.for_each(thread, static_cast<int>(attention_tasks_.size()), [&](int number) { merge_segments(number, rows); });
  }
  if (layer.dense.kind == kInt4) pool.for_each(thread, T, [&](int t) { attended_.finish_row(t, layer.dense, 0, T); });
  linear_phase(pool, thread, layer.dense, attended_.rows(layer.dense), T, {residual_.data(), D, nullptr, nullptr, true});
}

void Decoder::gather_rows(const Batch& batch, const AttentionTask& task, AttentionRows& rows) {
  const int C = config_.head_dim, H = config_.num_heads, G = config_.num_kv_heads, heads_a_group = H / G;
  rows.num = 0;
  for (int t = task.first_token; t < task.first_token + task.num_tokens; ++t) {
    for (int h = task.head * heads_a_group; h < (task.head + 1) * heads_a_group; ++h, ++rows.num) {
      rows.queries[rows.num] = &qkv_[static_cast<size_t>(t) * (H + 2 * G) * C + h * C];
      rows.visible[rows.num] = batch.positions[t] + 1;
    }
  }
}

void Decoder::attend(const Batch& batch, const Layer& layer, const std::vector<AttentionTask>& tasks, size_t number,
                     AttentionRows& rows, AttentionRows& part) {
  const AttentionTask& task = tasks[number];
  const auto table_of = [&](const AttentionTask& of) {
    return batch.block_tables + static_cast<long>(of.sequence) * batch.max_blocks;
  };
  const int32_t* table = table_of(task);
  Slabs after;
  if (number + 1 < tasks.size()) {
    const AttentionTask& next = tasks[number + 1];
    after = layer.cache.find(table_of(next), std::max(next.segment, 0) * kSegment, next.head);
  }
  gather_rows(batch, task, rows);
  if (task.segment >= 0) {
    const int begin = task.segment * kSegment, end = std::min(begin + kSegment, rows.visible[rows.num - 1]);
    attend_segment(layer.cache, task.head, table, begin, end, rows, after);
    return;
  }
  gather_rows(batch, task, part);
  attend_all(layer.cache, task.head, table, rows, part, after);
  finish_rows(task, rows);
}

// A task's segments stand one behind the other.
void Decoder::merge_segments(int number, AttentionRows& rows) {
  const AttentionTask& task = attention_tasks_[number];
  const auto is_of_task = [&](const AttentionTask& split) {
    return split.first_token == task.first_token && split.head == task.head;
  };
  size_t at = 0;
  while (!is_of_task(split_tasks_[at])) ++at;
  rows = segments_[at];
  while (++at < split_tasks_.size() && is_of_task(split_tasks_[at])) rows.merge(segments_[at], config_.head_dim);
  finish_rows(task, rows);
}

void Decoder::finish_rows(const AttentionTask& task, AttentionRows& rows) {
  const int C = config_.head_dim, heads_a_group = config_.num_heads / config_.num_kv_heads;
  for (int r = 0; r < rows.num; ++r) {
    const int t = task.first_token + r / heads_a_group, h = task.head * heads_a_group + r % heads_a_group;
    rows.divide(r, C, attended_.row(t) + h * C);
  }
}

// A run of columns of what down is given, for a list of tokens. Gate first, and then up: in turns tile by tile each would
// be read in pieces too short for the processor's own prefetching.
void Decoder::gate_up_run(const Mlp& mlp, int begin, int end, const Rows& rows, int num_rows, float* out, long stride) {
  for (int tile = begin; tile < end; ++tile) linear_tile(mlp.gate, tile, rows, num_rows, {out, stride});
  for (int tile = begin; tile < end; ++tile) {
    const int first = tile * kTile, num = std::min(kTile, mlp.gate.rows - first);
    for_tile(mlp.up, tile, rows, num_rows, [&](int m, f32x16 up) {
      float* at = out + m * stride + first;
      if (num == kTile) {
        store(at, silu(load(at)) * up);
      } else {
        for (int i = 0; i < num; ++i) at[i] = at[i] / (1.0f + std::exp(-at[i])) * up[i];
      }
    });
  }
}

void Decoder::mlp_phases(Pool& pool, int thread, const Batch& batch, int index) {
  Layer& layer = layers_[index];
  const int T = batch.num_tokens, D = config_.hidden, K = config_.top_k, E = config_.num_experts;
  const bool has_experts = !layer.experts.empty(), has_mlp = layer.mlp.gate.rows > 0;
  const Matrix& wanted = has_experts ? layer.experts[0].gate : layer.mlp.gate;
  const Matrix& down = has_experts ? layer.experts[0].down : layer.mlp.down;
  // 1. norm
  pool.for_each(thread, T, [&](int t) {
    rms_norm(&residual_[static_cast<size_t>(t) * D], layer.post_norm, config_.eps, D, normed_.row(t));
    normed_.finish_row(t, wanted, 0, T);
  });
  // 2. the router's logits, and beside them what needs no choice: the dense layer's or the shared expert's gate and up
  const int router_tasks = has_experts ? layer.router.num_tiles() : 0;
  const int mlp_tasks = has_mlp ? layer.mlp.gate.num_tiles() : 0;
  pool.for_each_run(thread, mlp_tasks + router_tasks, longest_run(wanted, T), [&](int first, int end) {
    if (first < mlp_tasks) {
      gate_up_run(layer.mlp, first, std::min(end, mlp_tasks), normed_.rows(layer.mlp.gate), T, shared_inner_.row(0),
                  shared_inner_.stride());
    }
    for (int task = std::max(first, mlp_tasks); task < end; ++task) {
      linear_tile(layer.router, task - mlp_tasks, normed_.rows(layer.router), T, {router_logits_.data(), E});
    }
  });
  int num_sorted = 0;
  if (has_experts) {
    // 3. the choice, and the tokens of each expert together
    const Routing routing{E, config_.num_groups, config_.top_groups, K, config_.routed_scale};
    pool.for_each(thread, T, [&](int t) {
      route(routing, &router_logits_[static_cast<size_t>(t) * E], layer.expert_bias, &topk_ids_[t * K], &topk_weights_[t * K]);
    });
    pool.for_each(thread, 1, [&](int) {
      sort_by_expert(T);
      const size_t at = static_cast<size_t>(index) * T;
      if (batch.router_logits) std::copy_n(router_logits_.data(), T * E, batch.router_logits + at * E);
      if (batch.topk_ids) std::copy_n(topk_ids_.data(), T * K, batch.topk_ids + at * K);
      if (batch.topk_weights) std::copy_n(topk_weights_.data(), T * K, batch.topk_weights + at * K);
    });
    if (residency) fetch_experts(pool, thread, T, index);
    num_sorted = T * K;
    if (T > 1) {
      pool.for_each(thread, num_sorted, [&](int m) {
        const Active& active = active_[active_of_[m]];
        gathered_.copy_row(m, normed_, sorted_tokens_[m], wanted, active.begin, active.end - active.begin, T);
      });
    }
    // 4. gate and up of the chosen experts
    const int tiles = wanted.num_tiles();
    pool.for_each_run(thread, static_cast<int>(active_.size()) * tiles, longest_run(wanted, T), [&](int first, int end) {
      for (int next; first < end; first = next) {
        const Active& active = active_[first / tiles];
        const Mlp& expert = layer.experts[active.expert];
        if (residency) residency->wait(index, active.expert);
        const Rows rows = T > 1 ? gathered_.rows(expert.gate, active.begin) : normed_.rows(expert.gate);
        const int begin = first % tiles;
        next = std::min(end, first - begin + tiles);
        gate_up_run(expert, begin, begin + next - first, rows, active.end - active.begin, inner_.row(active.begin),
                    inner_.stride());
      }
    });
  }
  // 5. down, each task its own columns of the residual stream, so that nothing has to be added up afterwards
  pool.for_each(thread, num_sorted + (has_mlp ? T : 0), [&](int m) {
    if (m < num_sorted) {
      const Active& active = active_[active_of_[m]];
      inner_.finish_row(m, layer.experts[0].down, active.begin, active.end - active.begin);
    } else {
      shared_inner_.finish_row(m - num_sorted, layer.mlp.down, 0, T);
    }
  });
  pool.for_each_run(thread, down.num_tiles(), longest_run(down, T), [&](int first, int end) {
    if (has_experts) {
      for (const Active& active : active_) {
        const Matrix& w = layer.experts[active.expert].down;
        const Target target{residual_.data(), D, &sorted_tokens_[active.begin], &sorted_weights_[active.begin], true};
        const Rows rows = inner_.rows(w, active.begin);
        for (int tile = first; tile < end; ++tile) linear_tile(w, tile, rows, active.end - active.begin, target);
      }
    }
    if (has_mlp) {
      const Rows rows = shared_inner_.rows(layer.mlp.down);
      const Target target{residual_.data(), D, nullptr, nullptr, true};
      for (int tile = first; tile < end; ++tile) linear_tile(layer.mlp.down, tile, rows, T, target);
    }
  });
}

void Decoder::sort_by_expert(int num_tokens) {
  const int K = config_.top_k;
  std::vector<int> begin(config_.num_experts + 1, 0);
  for (int i = 0; i < num_tokens * K; ++i) ++begin[topk_ids_[i] + 1];
  active_.clear();
  active_of_.clear();
  for (int e = 0; e < config_.num_experts; ++e) {
    if (begin[e + 1]) {
      active_of_.insert(active_of_.end(), begin[e + 1], static_cast<int32_t>(active_.size()));
      active_.push_back({e, begin[e], begin[e] + begin[e + 1]});
    }
    begin[e + 1] += begin[e];
  }
  for (int i = 0; i < num_tokens * K; ++i) {
    const int at = begin[topk_ids_[i]]++;
    sorted_tokens_[at] = i / K;
    sorted_weights_[at] = topk_weights_[i];
  }
}

// Orders the chosen experts; while they are read, the next layer's router is applied to the residual stream as it is
// now, which differs from what it will see by this layer's experts and the next attention only, and its choice ordered.
void Decoder::fetch_experts(Pool& pool, int thread, int num_tokens, int index) {
  const int T = num_tokens, D = config_.hidden, K = config_.top_k, E = config_.num_experts;
  std::vector<int> experts;  // the first thread's alone
  pool.for_each(thread, 1, [&](int) {
    for (const Active& active : active_) experts.push_back(active.expert);
    residency->require(index, experts);
  });
  if (index + 1 >= config_.num_layers || !residency->has_layer(index + 1)) return;
  const Layer& next = layers_[index + 1];
  pool.for_each(thread, 1, [&](int) {
    guess_normed_.reserve(T, D);
    guess_logits_.resize(static_cast<size_t>(T) * E);
    guess_ids_.resize(static_cast<size_t>(T) * K);
    guess_weights_.resize(guess_ids_.size());
  });
  pool.for_each(thread, T, [&](int t) {
    rms_norm(&residual_[static_cast<size_t>(t) * D], next.post_norm, config_.eps, D, guess_normed_.row(t));
  });
  pool.for_each(thread, next.router.num_tiles(), [&](int tile) {
    linear_tile(next.router, tile, guess_normed_.rows(next.router), T, {guess_logits_.data(), E});
  });
  const Routing routing{E, config_.num_groups, config_.top_groups, K, config_.routed_scale};
  pool.for_each(thread, T, [&](int t) {
    route(routing, &guess_logits_[static_cast<size_t>(t) * E], next.expert_bias, &guess_ids_[t * K], &guess_weights_[t * K]);
  });
  pool.for_each(thread, 1, [&](int) {
    std::vector<int> guessed(guess_ids_.begin(), guess_ids_.end());
    std::sort(guessed.begin(), guessed.end());
    guessed.erase(std::unique(guessed.begin(), guessed.end()), guessed.end());
    residency->prefetch(index + 1, guessed);
  });
}

}  // namespace bedside
