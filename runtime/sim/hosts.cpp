// The host threads: what each needs to run blocks, the signals of faults, and the workers that help launching threads.
//
// A launching thread runs blocks itself. Workers are made when a launch first wants them, sleep between launches, and belong
// to the process: a child of fork() has none, and makes its own.
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include "launch.h"

namespace sim {
namespace {

constexpr size_t kWorkerStack = 256 << 10;  // blocks run on stacks of their own

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // of all variables here
pthread_cond_t opened = PTHREAD_COND_INITIALIZER;  // a launch wants helpers
pthread_cond_t left = PTHREAD_COND_INITIALIZER;    // the last helper of a launch has left it
Sm* free_sms;
Launch* open_launches;  // which want more helpers
int launching;          // threads between sm_take and sm_give_back
int workers, idle;

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGTRAP}, kSignalCount = sizeof kSignals / sizeof kSignals[0];
struct sigaction old_actions[kSignalCount];

void restore_actions() {
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
}

void on_signal(int signal, siginfo_t* info, void*) {
  const Sm* s = sim_place.sm;
  if (!s || !s->running) {  // not ours: give it back and fault again
    restore_actions();
    return;
  }
  // aarch64 has no exception of division: there the compiler puts a trap before it.
  if (signal == SIGFPE || signal == SIGTRAP) sim_fail("integer division by zero");
  sim_fail("invalid or misaligned memory access (address %p); checked mode tells the line", info->si_addr);
}

void catch_signals() {
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
}

Sm* sm_new() {
  void* pages = mmap(nullptr, sizeof(Sm), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pages == MAP_FAILED ? nullptr : (Sm*)pages;
}

void use_signal_stack(Sm& s) {
  stack_t alternate = {};
  alternate.ss_sp = s.signal_stack;
  alternate.ss_size = sizeof s.signal_stack;
  sigaltstack(&alternate, &s.old_signal_stack);
}

void close_launch(Launch& launch) {
  for (Launch** at = &open_launches; *at; at = &(*at)->next_open)
    if (*at == &launch) {
      *at = launch.next_open;
      return;
    }
}

void* work(void*) {
  Sm* mine = nullptr;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!open_launches) {
      ++idle;
      pthread_cond_wait(&opened, &lock);
      --idle;
    }
    Launch& launch = *open_launches;
    if (!--launch.wanted) close_launch(launch);
    ++launch.helpers;
    pthread_mutex_unlock(&lock);
    if (!mine && (mine = sm_new())) use_signal_stack(*mine);
    if (mine) help(launch, *mine);  // without memory it is no help, this time
    pthread_mutex_lock(&lock);
    if (!--launch.helpers) pthread_cond_broadcast(&left);
  }
}

// Makes a worker. It leaves signals to other threads, but for faults. False if the system has no thread for it.
bool hire() {
  sigset_t blocked, old;
  sigfillset(&blocked);
  for (int signal : kSignals) sigdelset(&blocked, signal);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kWorkerStack);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_sigmask(SIG_SETMASK, &blocked, &old);
  pthread_t thread;
  const bool made = !pthread_create(&thread, &attributes, work, nullptr);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  pthread_attr_destroy(&attributes);
  workers += made;
  return made;
}

// The child of a fork has one thread, which is in no launch. What the others were using is lost to it.
void after_fork_in_child() {
  if (launching) restore_actions();
  open_launches = nullptr;
  launching = workers = idle = 0;
  pthread_cond_init(&opened, nullptr);
  pthread_cond_init(&left, nullptr);
  pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) void watch_forks() { pthread_atfork(hosts_lock, hosts_unlock, after_fork_in_child); }

}  // namespace

void hosts_lock() { pthread_mutex_lock(&lock); }
void hosts_unlock() { pthread_mutex_unlock(&lock); }

Sm* sm_take() {
  hosts_lock();
  Sm* s = free_sms;
  if (s) free_sms = s->next_free;
  else s = sm_new();
  if (s && !launching++) catch_signals();
  hosts_unlock();
  if (!s) return nullptr;
  use_signal_stack(*s);
  sim_place.sm = s;
  return s;
}

void sm_give_back(Sm* s) {
  sim_place.sm = nullptr;
  sigaltstack(&s->old_signal_stack, nullptr);
  hosts_lock();
  if (!--launching) restore_actions();
  s->next_free = free_sms;
  free_sms = s;
  hosts_unlock();
}

void invite(Launch& launch, int helpers) {
  hosts_lock();
  const int spare = launch.threads - launching;  // launching threads are host threads too
  if (helpers > spare) helpers = spare;
  for (int missing = helpers - idle; missing > 0 && workers < launch.threads - 1; --missing)
    if (!hire()) break;
  if (helpers > 0 && workers) {
    launch.wanted = helpers;
    launch.next_open = open_launches;
    open_launches = &launch;
    for (int i = 0; i < helpers; ++i) pthread_cond_signal(&opened);
  }
  hosts_unlock();
}

void dismiss(Launch& launch) {
  hosts_lock();
  close_launch(launch);
  while (launch.helpers) pthread_cond_wait(&left, &lock);
  hosts_unlock();
}

}  // namespace sim
