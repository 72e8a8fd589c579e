// Files that weights are mapped from. Where a page of one cannot be read any more, because the disk failed or the file
// was cut short, the system sends SIGBUS, which would end the program: here the page becomes zeros and is counted as
// lost, so that the pass ends and its caller throws away what it computed.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <mutex>

namespace {

struct Map {
  std::atomic<uintptr_t> begin{0}, end{0};
};
Map maps[1024];
std::atomic<int> num_lost{0};
struct sigaction action_before;

void replace_page(int signal, siginfo_t* info, void*) {
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  for (const Map& map : maps) {
    if (at < map.begin || at >= map.end) continue;
    const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    void* page = reinterpret_cast<void*>(at / size * size);
    if (mmap(page, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) break;
    ++num_lost;
    return;
  }
  sigaction(signal, &action_before, nullptr);  // none of ours: what happens again, now happens as it would have
}

}  // namespace

extern "C" {

// Whether there was room to remember that these bytes are a mapped file.
bool bedside_map_watch(const void* begin, int64_t num_bytes) {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = replace_page;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, &action_before);
  });
  for (Map& map : maps) {
    uintptr_t none = 0;
    if (!map.begin.compare_exchange_strong(none, reinterpret_cast<uintptr_t>(begin))) continue;
    map.end = reinterpret_cast<uintptr_t>(begin) + num_bytes;
    return true;
  }
  return false;
}

void bedside_map_unwatch(const void* begin) {
  for (Map& map : maps) {
    if (map.begin != reinterpret_cast<uintptr_t>(begin)) continue;
    map.end = 0;
    map.begin = 0;
  }
}

// Pages of all such files that were lost since the program began.
int bedside_map_num_lost() { return num_lost; }
}
