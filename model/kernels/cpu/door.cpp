// What Python calls: a decoder and its threads, its weights, a pass; experts that are read from files; packing.
#include "decoder.h"

using namespace bedside;

extern "C" {

struct LayerWeights {
  Matrix qkv, dense, router, gate, up, down;
  const float *input_norm, *post_norm, *query_norm, *key_norm, *expert_bias;
  const Matrix* experts;  // [num_experts, 3]: gate, up, down
  int32_t num_experts, cache_kind;
  uint8_t *keys, *values;
};

void* bedside_pool_new(int num_threads) { return new Pool(num_threads); }
void bedside_pool_free(void* pool) { delete static_cast<Pool*>(pool); }

void* bedside_decoder_new(const Config* config, const float* inv_freq, const Matrix* embedding, const Matrix* head,
                          const float* final_norm) {
  auto* decoder = new Decoder(*config, inv_freq);
  decoder->embedding = *embedding;
  decoder->head = *head;
  decoder->final_norm = final_norm;
  return decoder;
}
void bedside_decoder_free(void* decoder) { delete static_cast<Decoder*>(decoder); }

void bedside_decoder_set_layer(void* decoder, const Config* config, int index, const LayerWeights* w) {
  Layer& layer = static_cast<Decoder*>(decoder)->layer(index);
  layer.input_norm = w->input_norm;
  layer.post_norm = w->post_norm;
  layer.query_norm = w->query_norm;
  layer.key_norm = w->key_norm;
  layer.qkv = w->qkv;
  layer.dense = w->dense;
  layer.router = w->router;
  layer.expert_bias = w->expert_bias;
  layer.mlp = {w->gate, w->up, w->down};
  layer.experts.resize(w->num_experts);
  for (int e = 0; e < w->num_experts; ++e) {
    layer.experts[e] = {w->experts[3 * e], w->experts[3 * e + 1], w->experts[3 * e + 2]};
  }
  layer.cache = {w->keys, w->values, static_cast<CacheKind>(w->cache_kind), config->num_kv_heads, config->head_dim};
}

void bedside_decoder_add_mtp(void* decoder, const float* embedding_norm, const float* hidden_norm,
                             const float* final_norm, const Matrix* join) {
  static_cast<Decoder*>(decoder)->add_mtp({embedding_norm, hidden_norm, final_norm, *join});
}

// Of experts that cannot be read the drafts are wrong guesses, which cost nothing but time; `forward` will tell.
void bedside_draft(void* decoder, void* pool, const DraftBatch* batch) {
  static_cast<Decoder*>(decoder)->draft(*static_cast<Pool*>(pool), *batch);
}

// 0, or 1 where experts could not be read: nothing that was computed counts then.
int bedside_forward(void* decoder, void* pool, const Batch* batch) {
  auto* model = static_cast<Decoder*>(decoder);
  if (model->residency) model->residency->begin_pass();
  model->forward(*static_cast<Pool*>(pool), *batch);
  return model->residency && model->residency->has_failed();
}

// Null where there is no memory for so many slots.
void* bedside_residency_new(int num_layers, int num_experts, int64_t stride, int num_slots) {
  auto* residency = new Residency(num_layers, num_experts, stride, num_slots);
  if (residency->has_memory()) return residency;
  delete residency;
  return nullptr;
}
void bedside_residency_free(void* residency) { delete static_cast<Residency*>(residency); }

// The layer's experts, whose matrices have no data yet, are read from fd on from `begin`.
void bedside_residency_set_layer(void* residency, void* decoder, int index, int fd, int64_t begin, const ExpertPlace* places) {
  auto* model = static_cast<Decoder*>(decoder);
  std::vector<Matrix*> matrices;
  for (Mlp& expert : model->layer(index).experts) {
    for (Matrix* matrix : {&expert.gate, &expert.up, &expert.down}) matrices.push_back(matrix);
  }
  model->residency = static_cast<Residency*>(residency);
  model->residency->set_layer(index, fd, begin, places, matrices.data());
}

ResidencyCounts bedside_residency_counts(void* residency) { return static_cast<Residency*>(residency)->counts(); }

const char* bedside_layout() { return kLayout; }

void bedside_pack_int4(void* pool, const uint32_t* words, int rows, int cols, uint8_t* out) {
  Pool& threads = *static_cast<Pool*>(pool);
  threads.run([&](int thread) {
    threads.for_each(thread, (rows + kTile - 1) / kTile, [&](int tile) { pack_tile(words, rows, cols, tile, out); });
  });
}

}
