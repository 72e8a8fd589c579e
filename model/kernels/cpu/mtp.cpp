// Drafts by the MTP layer: its keys and values of every token that the model has computed, and from the last of them on
// some tokens more.
//
// Row t joins the model's state at t, after the final norm, to the embedding of token t + 1; the layer's own state after
// its final norm predicts token t + 2, and stands for the model's where the draft goes on. The layer's keys and values
// of t come from row t alone, so that attention and experts are computed for the rows that a draft starts from.
#include <algorithm>
#include <numeric>

#include "decoder.h"
#include "phases.h"

namespace bedside {

// The layer's input into the residual stream; hidden_rows: where each row's state lies in `hidden`.
void Decoder::join_phases(Pool& pool, int thread, const int32_t* ids, const float* hidden,
                                 const int32_t* hidden_rows, int num) {
  const int D = config_.hidden;
  pool.for_each(thread, num, [&](int t) {
    float* out = joined_.row(t);
    embed(ids[t], out);
    rms_norm(out, mtp.embedding_norm, config_.eps, D, out);
    rms_norm(hidden + static_cast<long>(hidden_rows[t]) * D, mtp.hidden_norm, config_.eps, D, out + D);
    joined_.finish_row(t, mtp.join, 0, num);
  });
  linear_phase(pool, thread, mtp.join, joined_.rows(mtp.join), num, {residual_.data(), D});
}

// From the residual stream after the layer: each row's state, and the likeliest token after it.
void Decoder::guess_phases(Pool& pool, int thread, int num, int32_t* ids) {
  const int D = config_.hidden;
  pool.for_each(thread, num, [&](int m) {
    float* hidden = &mtp_hidden_[static_cast<size_t>(m) * D];
    rms_norm(&residual_[static_cast<size_t>(m) * D], mtp.final_norm, config_.eps, D, hidden);
    std::copy_n(hidden, D, normed_.row(m));
    normed_.finish_row(m, head, 0, num);
  });
  linear_phase(pool, thread, head, normed_.rows(head), num, {mtp_logits_.data(), config_.vocab});
  pool.for_each(thread, num, [&](int m) {
    const float* logits = &mtp_logits_[static_cast<size_t>(m) * config_.vocab];
    ids[m] = static_cast<int32_t>(std::max_element(logits, logits + config_.vocab) - logits);
  });
}

void Decoder::draft(Pool& pool, const DraftBatch& wanted) {
  const int D = config_.hidden, S = wanted.num_sequences;
  Layer& layer = layers_[config_.num_layers];
  // 1. every row's keys and values, and of the last rows their attention
  std::vector<int32_t> active, last_rows;
  for (int s = 0; s < S; ++s) {
    if (!wanted.num_drafts[s]) continue;
    active.push_back(s);
    last_rows.push_back(wanted.starts[s + 1] - 1);
  }
  Batch batch{};
  batch.num_tokens = wanted.num_tokens;
  batch.num_sequences = S;
  batch.max_blocks = wanted.max_blocks;
  batch.positions = wanted.positions;
  batch.starts = wanted.starts;
  batch.block_tables = wanted.block_tables;
  prepare(batch, pool.num_threads());
  const auto is_unwanted = [&](const AttentionTask& task) {
    return !wanted.num_drafts[task.sequence] || task.first_token + task.num_tokens < wanted.starts[task.sequence + 1];
  };
  std::erase_if(attention_tasks_, is_unwanted);
  std::erase_if(split_tasks_, is_unwanted);
  pool.run([&](int thread) {
    join_phases(pool, thread, wanted.ids, wanted.hidden, wanted.hidden_rows, batch.num_tokens);
    attention_phases(pool, thread, batch, layer);
  });
  for (size_t i = 0; i < active.size(); ++i) {  // ascending, so that none is overwritten before it is moved
    std::copy_n(&residual_[static_cast<size_t>(last_rows[i]) * D], D, &residual_[i * D]);
  }
  // 2. a token of every draft at a time
  std::vector<int32_t> ids(S), positions(S), starts(S + 1), tables(static_cast<size_t>(S) * wanted.max_blocks), rows(S);
  mtp_hidden_.resize(static_cast<size_t>(S) * D);
  mtp_logits_.resize(static_cast<size_t>(S) * config_.vocab);
  for (int step = 0; !active.empty(); ++step) {
    const int num = static_cast<int>(active.size());
    batch.num_tokens = num;
    pool.run([&](int thread) {
      mlp_phases(pool, thread, batch, config_.num_layers);
      guess_phases(pool, thread, num, ids.data());
    });
    // 3. on from what was drafted, where more is wanted
    int next = 0;
    for (int m = 0; m < num; ++m) {
      const int s = active[m];
      wanted.drafts[s * wanted.max_draft + step] = ids[m];
      if (step + 1 == wanted.num_drafts[s]) continue;
      active[next] = s;
      ids[next] = ids[m];
      positions[next] = wanted.positions[wanted.starts[s + 1] - 1] + step + 1;
      rows[next] = m;
      std::copy_n(wanted.block_tables + static_cast<long>(s) * wanted.max_blocks, wanted.max_blocks,
                  &tables[static_cast<size_t>(next) * wanted.max_blocks]);
      ++next;
    }
    active.resize(next);
    if (active.empty()) return;
    std::iota(starts.begin(), starts.begin() + next + 1, 0);
    batch.num_tokens = batch.num_sequences = next;
    batch.positions = positions.data();
    batch.starts = starts.data();
    batch.block_tables = tables.data();
    prepare(batch, pool.num_threads());
    pool.run([&](int thread) {
      join_phases(pool, thread, ids.data(), mtp_hidden_.data(), rows.data(), next);
      attention_phases(pool, thread, batch, layer);
    });
  }
}

}  // namespace bedside
