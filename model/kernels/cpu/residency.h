// Routed experts of a model that is larger than memory: read from their files as they are chosen, the most used kept.
//
// Memory is a number of slots, each of one expert: a stretch of a file that holds gate, up and down as the kernels read
// them. A few threads read past the page cache, whose copy would only take the slots' room. Before a layer's experts
// are used, `require` gives each of them a slot and orders what is missing; `prefetch` orders what the next layer will
// probably choose, while this one is computed. Whose slot is taken: the one with the least uses, an older use counting
// less (LRFU, Lee et al. 1999, doi:10.1145/301464.301487). Knows nothing of tokens and routers.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "linear.h"

namespace bedside {

// Where a matrix lies within an expert's bytes; scales < 0 where it has none.
struct ExpertPlace {
  int64_t data, scales;
  int32_t scales_bf16, unused;
};

struct ResidencyCounts {
  int64_t hits;         // experts wanted that were kept from earlier
  int64_t prefetched;   // that the guess had ordered in time or nearly so
  int64_t misses;       // that had to be read when they were wanted
  int64_t guessed;      // experts that the guess named
  int64_t guessed_right;
  int64_t bytes_read;
  int64_t slots;
  int32_t error;        // errno of the last read that failed; -1: the file was too short; 0: none
  int32_t error_layer;
};

class Residency {
 public:
  static constexpr int kReaders = 4;
  static constexpr double kHalfLife = 32;  // passes after which a use counts half

  Residency(int num_layers, int num_experts, int64_t stride, int num_slots)
      : num_experts_(num_experts), stride_(stride), layers_(num_layers),
        entries_(static_cast<size_t>(num_layers) * num_experts), owners_(num_slots, -1) {
    counts_.slots = num_slots;
    // A slot begins on a page, as reading past the page cache asks for; huge pages, as the kernels read them faster.
    size_ = static_cast<size_t>(stride) * num_slots;
    memory_ = static_cast<uint8_t*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) memory_ = nullptr;
    if (memory_) madvise(memory_, size_, MADV_HUGEPAGE);
    for (int i = 0; i < kReaders; ++i) readers_.emplace_back([this] { read_orders(); });
  }
  ~Residency() {
    {
      std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    ordered_.notify_all();
    for (auto& reader : readers_) reader.join();
    if (memory_) munmap(memory_, size_);
  }
  bool has_memory() const { return memory_ != nullptr; }

  // `matrices`: gate, up and down of expert e at [3 e]; their pointers are set whenever e gets a slot.
  void set_layer(int layer, int fd, int64_t begin, const ExpertPlace* places, Matrix* const* matrices) {
    layers_[layer] = {fd, begin, {places[0], places[1], places[2]}, {matrices, matrices + 3L * num_experts_}};
  }
  bool has_layer(int layer) const { return !layers_[layer].matrices.empty(); }

  void begin_pass() {
    has_failed_ = false;
    use_ *= std::exp2(1 / kHalfLife);
    if (use_ > 1e100) {
      for (Entry& entry : entries_) entry.value /= use_;
      use_ = 1;
    }
  }
  // Whether an expert of this pass could not be read. Changes only where experts are waited for.
  bool has_failed() const { return has_failed_.load(std::memory_order_acquire); }

  // By one thread, before the layer's experts are used: each gets a slot. `experts` ascending.
  void require(int layer, const std::vector<int>& experts) {
    std::unique_lock lock(mutex_);
    ++epoch_;
    const int first = layer * num_experts_;
    for (int e : experts) entries_[first + e].kept = epoch_;
    // What was guessed for this layer and is not wanted: unless it is being read already, it need not be.
    for (int at : later_) {
      if (entries_[at].kept != epoch_) drop(at);
    }
    for (int e : experts) {
      Entry& entry = entries_[first + e];
      entry.value += use_;
      if (guess_layer_ == layer && entry.guessed == guess_) ++counts_.guessed_right;
      const int state = entry.state.load(std::memory_order_relaxed);
      if (state == kReady) {
        ++(entry.is_prefetched ? counts_.prefetched : counts_.hits);
      } else if (state == kReading || state == kOrdered) {
        ++counts_.prefetched;
        if (state == kOrdered) now_.push_back(first + e);
      } else {
        ++counts_.misses;
        while (!take_slot(first + e)) read_.wait(lock);  // until a read that nobody wants any more is over
        now_.push_back(first + e);
      }
      entry.is_prefetched = false;
    }
    later_.clear();
    lock.unlock();
    ordered_.notify_all();
  }

  // By one thread: orders experts of a later layer, as far as there are slots that this layer does not need.
  void prefetch(int layer, const std::vector<int>& experts) {
    {
      std::lock_guard lock(mutex_);
      const int first = layer * num_experts_;
      ++guess_;
      guess_layer_ = layer;
      counts_.guessed += static_cast<int64_t>(experts.size());
      for (int e : experts) {
        Entry& entry = entries_[first + e];
        entry.guessed = guess_;
        if (entry.kept != epoch_) entry.kept = epoch_;  // its slot must not be taken for another guess
      }
      for (int e : experts) {
        Entry& entry = entries_[first + e];
        const int state = entry.state.load(std::memory_order_relaxed);
        if (state != kAbsent && state != kFailed) continue;
        if (!take_slot(first + e)) break;
        entry.is_prefetched = true;
        later_.push_back(first + e);
      }
    }
    ordered_.notify_all();
  }

  // Returns once a required expert is there, or cannot be read; then the pass has failed.
  void wait(int layer, int expert) {
    Entry& entry = entries_[layer * num_experts_ + expert];
    for (int state; (state = entry.state.load(std::memory_order_acquire)) != kReady;) {
      if (state == kFailed) {
        has_failed_.store(true, std::memory_order_release);
        return;
      }
      entry.state.wait(state);
    }
  }

  ResidencyCounts counts() {
    std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  enum State : int { kAbsent, kOrdered, kReading, kReady, kFailed };
  struct Entry {
    std::atomic<int> state{kAbsent};
    int slot = -1;
    double value = 0;
    uint64_t kept = 0, guessed = 0;
    bool is_prefetched = false;
  };
  struct LayerFile {
    int fd = -1;
    int64_t begin = 0;
    ExpertPlace places[3] = {};
    std::vector<Matrix*> matrices;
  };

  // A slot for an entry: an empty one, or that of the least valuable expert which nobody needs now.
  bool take_slot(int at) {
    int best = -1;
    for (int slot = 0; slot < static_cast<int>(owners_.size()); ++slot) {
      if (owners_[slot] < 0) {
        best = slot;
        break;
      }
      const Entry& owner = entries_[owners_[slot]];
      const int state = owner.state.load(std::memory_order_relaxed);
      if (owner.kept == epoch_ || state != kReady) continue;
      if (best < 0 || owner.value < entries_[owners_[best]].value) best = slot;
    }
    if (best < 0) return false;
    if (owners_[best] >= 0) {
      entries_[owners_[best]].slot = -1;
      entries_[owners_[best]].state.store(kAbsent, std::memory_order_relaxed);
    }
    owners_[best] = at;
    entries_[at].slot = best;
    entries_[at].state.store(kOrdered, std::memory_order_relaxed);
    const LayerFile& file = layers_[at / num_experts_];
    for (int part = 0; part < 3; ++part) {
      Matrix& matrix = *file.matrices[3L * (at % num_experts_) + part];
      const uint8_t* base = memory_ + stride_ * best;
      matrix.data = base + file.places[part].data;
      if (file.places[part].scales < 0) continue;
      const uint8_t* scales = base + file.places[part].scales;
      if (file.places[part].scales_bf16) {
        matrix.scales_bf16 = reinterpret_cast<const uint16_t*>(scales);
      } else {
        matrix.scales = reinterpret_cast<const float*>(scales);
      }
    }
    return true;
  }

  void drop(int at) {
    Entry& entry = entries_[at];
    if (entry.state.load(std::memory_order_relaxed) != kOrdered) return;
    owners_[entry.slot] = -1;
    entry.slot = -1;
    entry.is_prefetched = false;
    entry.state.store(kAbsent, std::memory_order_relaxed);
  }

  void read_orders() {
    std::unique_lock lock(mutex_);
    while (true) {
      ordered_.wait(lock, [this] { return is_closing_ || !now_.empty() || !later_.empty(); });
      if (is_closing_) return;
      auto& orders = now_.empty() ? later_ : now_;
      const int at = orders.front();
      orders.pop_front();
      Entry& entry = entries_[at];
      if (entry.state.load(std::memory_order_relaxed) != kOrdered) continue;  // another reader has it
      entry.state.store(kReading, std::memory_order_relaxed);
      const LayerFile& file = layers_[at / num_experts_];
      uint8_t* out = memory_ + stride_ * entry.slot;
      lock.unlock();
      const int error = read_all(file.fd, out, file.begin + stride_ * (at % num_experts_));
      lock.lock();
      counts_.bytes_read += stride_;
      if (error) {
        counts_.error = error;
        counts_.error_layer = at / num_experts_;
        owners_[entry.slot] = -1;
        entry.slot = -1;
      }
      entry.state.store(error ? kFailed : kReady, std::memory_order_release);
      entry.state.notify_all();
      read_.notify_all();
    }
  }

  int read_all(int fd, uint8_t* out, int64_t offset) const {
    for (int64_t done = 0; done < stride_;) {
      const ssize_t num = pread(fd, out + done, stride_ - done, offset + done);
      if (num < 0 && errno == EINTR) continue;
      if (num < 0) return errno;
      if (num == 0) return -1;
      done += num;
    }
    return 0;
  }

  const int num_experts_;
  const int64_t stride_;
  std::vector<LayerFile> layers_;
  std::vector<Entry> entries_;  // [layers, experts]
  std::vector<int> owners_;     // of the slots: an entry, or -1
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
  double use_ = 1;  // what one use is worth now; grows, so that earlier ones count less
  uint64_t epoch_ = 0, guess_ = 0;
  int guess_layer_ = -1;
  std::deque<int> now_, later_;
  std::atomic<bool> has_failed_{false};
  ResidencyCounts counts_{};
  std::mutex mutex_;
  std::condition_variable ordered_, read_;
  bool is_closing_ = false;
  std::vector<std::thread> readers_;
};

}  // namespace bedside
