// Runs launches of the simulator in a process of another architecture: driver RUNTIME KERNEL ENTRY JOB.
//
// The job is a file: a struct Job, the parameters, and each array of the device's memory with its address. The arrays are
// mapped at these addresses, so that the parameters' pointers are good as they are; afterwards the file holds their results.
// The exit status is 0, 1 with the simulator's message on standard output, or 2 if the driver itself cannot do its work.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct Spec {  // as in launch.h
  void* kernel;
  void* params;
  uint32_t grid[3], block[3];
  uint64_t shared_bytes;
  uint32_t cluster, cooperative, overlapping, reserved;
};
struct Job {
  struct Spec spec;  // whose addresses are filled in here
  uint64_t seed, threads, checked;
  uint64_t param_bytes, buffers, arrays;  // ``buffers`` rows of three numbers follow the parameters, then ``arrays`` arrays
};
struct Array {
  uint64_t address, bytes;
};

static void fail(const char* what) {
  fprintf(stderr, "driver: %s\n", what);
  exit(2);
}

static void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (!found) fail(dlerror());
  return found;
}

static void read_exactly(FILE* file, void* to, size_t bytes) {
  if (fread(to, 1, bytes, file) != bytes) fail("the job ends early");
}

static void* mapped(uint64_t address, uint64_t bytes) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (address ? MAP_FIXED_NOREPLACE : 0);
  void* found = mmap((void*)address, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (found == MAP_FAILED || (address && (uint64_t)found != address)) fail("an address is taken");
  return found;
}

int main(int count, char** given) {
  if (count != 5) fail("four arguments: runtime, kernel, entry, job");
  void* runtime = dlopen(given[1], RTLD_NOW | RTLD_GLOBAL);
  if (!runtime) fail(dlerror());
  void* kernel = dlopen(given[2], RTLD_NOW);
  if (!kernel) fail(dlerror());

  FILE* file = fopen(given[4], "r+b");
  if (!file) fail("the job cannot be opened");
  struct Job job;
  read_exactly(file, &job, sizeof job);
  job.spec.kernel = symbol(kernel, given[3]);
  job.spec.params = mapped(0, job.param_bytes + 1);
  read_exactly(file, job.spec.params, job.param_bytes);
  uint64_t* buffers = mapped(0, job.buffers * 24 + 1);
  read_exactly(file, buffers, job.buffers * 24);
  const long first_array = ftell(file);
  for (uint64_t i = 0; i < job.arrays; ++i) {
    struct Array array;
    read_exactly(file, &array, sizeof array);
    read_exactly(file, mapped(array.address, array.bytes), array.bytes);
  }

  int (*launch)(const struct Spec*, int, int, int, int, const uint64_t*, char*, uint64_t) = symbol(runtime, "sim_launch");
  char error[4096];
  if (launch(&job.spec, (int)job.seed, (int)job.threads, (int)job.checked, (int)job.buffers, buffers, error, sizeof error)) {
    puts(error);
    return 1;
  }

  fseek(file, first_array, SEEK_SET);
  for (uint64_t i = 0; i < job.arrays; ++i) {
    struct Array array;
    read_exactly(file, &array, sizeof array);
    fseek(file, 0, SEEK_CUR);  // between reading and writing
    if (fwrite((void*)array.address, 1, array.bytes, file) != array.bytes) fail("the results cannot be written");
    fseek(file, 0, SEEK_CUR);
  }
  return fclose(file) ? 2 : 0;
}
