// A whole BailingMoeV2 pass over a batch of sequences: one call from Python, one job for the threads.
//
// Each phase is a list of tasks that ends in a barrier. The residual stream, norms, router and sums are f32.
// T tokens of all sequences together, D hidden, H query heads, G kv heads, C head dim, E experts, K experts a token,
// F expert width. model/modeling.py is the definition that this is held against.
#pragma once

#include <memory>
#include <vector>

#include "attention.h"
#include "linear.h"
#include "residency.h"
#include "router.h"
#include "threads.h"

namespace bedside {

struct Config {
  int32_t hidden, num_heads, num_kv_heads, head_dim, rotary_dim, num_layers, vocab;
  int32_t num_experts, num_groups, top_groups, top_k;
  float routed_scale, eps, rope_factor;
};

struct Mlp {
  Matrix gate, up, down;
};

struct Layer {
  const float *input_norm = nullptr, *post_norm = nullptr, *query_norm = nullptr, *key_norm = nullptr;
  Matrix qkv, dense, router;
  const float* expert_bias = nullptr;
  Mlp mlp;                   // the dense layer's, or the shared expert; gate.rows == 0 where there is none
  std::vector<Mlp> experts;  // empty in a dense layer
  Cache cache;
};

struct Batch {
  int32_t num_tokens, num_sequences, num_logits, max_blocks;
  const int32_t* ids;           // [T]
  const int32_t* positions;     // [T], also the place in the sequence's cache
  const int32_t* starts;        // [sequences + 1]: each sequence's tokens, consecutive positions
  const int32_t* block_tables;  // [sequences, max_blocks]
  const int32_t* logit_rows;    // [num_logits]
  float* logits;                // [num_logits, vocab]
  float* hidden;                // [T, D] after the final norm, or null
  float* router_logits;         // [layers, T, E], or null
  int32_t* topk_ids;            // [layers, T, K], or null
  float* topk_weights;          // [layers, T, K], or null
  int32_t num_taps;
  const int32_t* tap_layers;    // [num_taps]: n is the residual stream before layer n, 0 the embeddings
  float* taps;                  // [num_taps, T, D]
};

// What drafts are wanted by the MTP layer. T rows of sequences that the decoder has computed; see mtp.cpp.
struct DraftBatch {
  int32_t num_tokens, num_sequences, max_blocks, max_draft;
  const int32_t* ids;           // [T]: the token after each row
  const int32_t* positions;     // [T], of the rows
  const int32_t* starts;        // [sequences + 1]
  const int32_t* block_tables;  // [sequences, max_blocks]
  const float* hidden;          // [.., D]: the decoder's states after the final norm
  const int32_t* hidden_rows;   // [T]: each row's place among them
  const int32_t* num_drafts;    // [sequences]
  int32_t* drafts;              // [sequences, max_draft]
};

struct Mtp {
  const float *embedding_norm = nullptr, *hidden_norm = nullptr, *final_norm = nullptr;
  Matrix join;  // [D, 2 D]: the embedding's half first
};

// Activations in the form that a matrix wants: the floats themselves, and their int8 image if it is INT4. A row has
// room for `cols` floats; a narrower matrix uses the first of them. Rows belong to lists, each from `begin` on, that are
// multiplied together.
class Activations {
 public:
  void reserve(int num_rows, int cols) {
    cols_ = cols;
    x_.resize(static_cast<size_t>(num_rows) * cols);
    q_.resize(x_.size());
    scale_.resize(x_.size() / 8);
    start_.resize(x_.size() / 8);
  }
  long stride() const { return cols_; }
  float* row(int m) { return x_.data() + static_cast<size_t>(m) * cols_; }
  // The image of row m, of a list of `num` rows from `begin` on.
  void finish_row(int m, const Matrix& w, int begin, int num) {
    if (w.kind != kInt4) return;
    thread_local std::vector<int8_t> q;
    thread_local std::vector<float> scale;
    thread_local std::vector<int32_t> start;
    q.resize(w.cols);
    scale.resize(w.num_groups());
    start.resize(w.num_groups());
    quantize_row(row(m), w.cols, w.group, q.data(), scale.data(), start.data());
    const Image to = image(m, w, begin, num);
    for (int c = 0; c < w.cols / 8; ++c) std::memcpy(to.q + c * to.step * 8, &q[c * 8], 8);
    for (int g = 0; g < w.num_groups(); ++g) {
      to.scale[g * to.step] = scale[g];
      to.start[g * to.step] = start[g];
    }
  }
  // Row m, of a list of `num` from `begin` on, becomes row `source` of another's only list of `num_from`.
  void copy_row(int m, Activations& from, int source, const Matrix& w, int begin, int num, int num_from) {
    if (w.kind != kInt4) {
      std::copy_n(from.row(source), cols_, row(m));
      return;
    }
    const Image to = image(m, w, begin, num), at = from.image(source, w, 0, num_from);
    for (int c = 0; c < w.cols / 8; ++c) std::memcpy(to.q + c * to.step * 8, at.q + c * at.step * 8, 8);
    for (int g = 0; g < w.num_groups(); ++g) {
      to.scale[g * to.step] = at.scale[g * at.step];
      to.start[g * to.step] = at.start[g * at.step];
    }
  }
  Rows rows(const Matrix& w, int begin = 0) const {
    const size_t at = begin, group_at = w.kind == kInt4 ? at * w.num_groups() : 0;
    return {x_.data() + at * cols_, cols_, q_.data() + at * w.cols, &scale_[group_at], &start_[group_at]};
  }

 private:
  struct Image {
    int8_t* q;
    float* scale;
    int32_t* start;
    int step;
  };
  Image image(int m, const Matrix& w, int begin, int num) {
    const Place place = place_of(m - begin, num);
    const size_t block = begin + place.block, lane = m - block, groups = w.num_groups();
    return {q_.data() + block * w.cols + lane * 8, &scale_[block * groups + lane], &start_[block * groups + lane],
            place.width};
  }

  int cols_ = 0;
  std::vector<float> x_, scale_;
  std::vector<int32_t> start_;
  std::vector<int8_t> q_;
};

class Decoder {
 public:
  Decoder(const Config& config, const float* inv_freq)
      : config_(config), inv_freq_(inv_freq, inv_freq + config.rotary_dim / 2), layers_(config.num_layers) {}

  Layer& layer(int index) { return layers_[index]; }
  void add_mtp(const Mtp& weights) {  // its layer follows the others
    layers_.resize(config_.num_layers + 1);
    mtp = weights;
  }
  Matrix embedding, head;
  const float* final_norm = nullptr;
  Mtp mtp;
  Residency* residency = nullptr;  // where experts are read from their files; null where all are in memory

  void forward(Pool& pool, const Batch& batch);
  void draft(Pool& pool, const DraftBatch& wanted);

 private:
  struct AttentionTask {
    int sequence, first_token, num_tokens, head;
    int segment;  // -1: all of them
  };
  struct Active {
    int expert, begin, end;  // rows of the sorted list
  };
  void prepare(const Batch& batch, int num_threads);
  void plan_attention(const Batch& batch, int num_threads);
  void gather_rows(const Batch& batch, const AttentionTask& task, AttentionRows& rows);
  void attend(const Batch& batch, const Layer& layer, const std::vector<AttentionTask>& tasks, size_t number,
              AttentionRows& rows, AttentionRows& part);
  void merge_segments(int number, AttentionRows& rows);
  void finish_rows(const AttentionTask& task, AttentionRows& rows);
  void embed(int id, float* out) const;
  void tap(Pool& pool, int thread, const Batch& batch, int layer);
  void join_phases(Pool& pool, int thread, const int32_t* ids, const float* hidden, const int32_t* hidden_rows, int num);
  void guess_phases(Pool& pool, int thread, int num, int32_t* ids);
  void attention_phases(Pool& pool, int thread, const Batch& batch, Layer& layer);
  void mlp_phases(Pool& pool, int thread, const Batch& batch, int index);
  void sort_by_expert(int num_tokens);
  void fetch_experts(Pool& pool, int thread, int num_tokens, int index);
  void gate_up_run(const Mlp& mlp, int begin, int end, const Rows& rows, int num_rows, float* out, long stride);

  Config config_;
  std::vector<float> inv_freq_;
  std::vector<Layer> layers_;
  // Space of a pass, kept from one to the next.
  int num_rows_ = 0;
  std::vector<float> residual_, qkv_, cos_, sin_, router_logits_;
  std::vector<float> mtp_hidden_, mtp_logits_;
  Activations joined_, normed_, attended_, gathered_, inner_, shared_inner_;
  std::vector<int32_t> topk_ids_, sorted_tokens_;
  std::vector<float> topk_weights_, sorted_weights_;
  Activations guess_normed_;  // what a layer's router will see, as guessed a layer before
  std::vector<float> guess_logits_, guess_weights_;
  std::vector<int32_t> guess_ids_;
  std::vector<Active> active_;
  std::vector<int32_t> active_of_;  // each sorted row's place among them
  std::vector<int32_t> sequence_of_;  // of each token
  std::vector<AttentionTask> attention_tasks_, split_tasks_;  // rows by rows; and those too few for the threads, in segments
  std::vector<AttentionRows> attention_space_;                // two a thread
  std::vector<AttentionRows> segments_;                       // results of split_tasks_
};

}  // namespace bedside
