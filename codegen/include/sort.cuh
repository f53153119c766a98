// Stable merge sort of keys and places, in n log n steps, in plain CUDA C++. Include it after prims.cuh.
#pragma once

// Unsigned keys in the order of the values: -0 equals 0, and all NaNs are equal and the largest.
ARCWELD_DEVICE u32 sort_key(u32 x) { return x; }
ARCWELD_DEVICE u32 sort_key(u16 x) { return x; }
ARCWELD_DEVICE u32 sort_key(u8 x) { return x; }
ARCWELD_DEVICE u32 sort_key(i32 x) { return u32(x) ^ 0x80000000u; }
ARCWELD_DEVICE u32 sort_key(i16 x) { return sort_key(i32(x)); }
ARCWELD_DEVICE u32 sort_key(i8 x) { return sort_key(i32(x)); }
ARCWELD_DEVICE u64 sort_key(u64 x) { return x; }
ARCWELD_DEVICE u64 sort_key(i64 x) { return u64(x) ^ 0x8000000000000000ull; }
ARCWELD_DEVICE u32 sort_key(f32 x) {
  if (x != x) return 0xffffffffu;
  const u32 bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
ARCWELD_DEVICE u64 sort_key(f64 x) {
  if (x != x) return 0xffffffffffffffffull;
  const u64 bits = u64(__double_as_longlong(x == 0.0 ? 0.0 : x));
  return bits >> 63 ? ~bits : bits | 0x8000000000000000ull;
}

// Of the first ``number`` keys that two runs in order give when they are merged, how many are of the first run. Of equal keys
// those of the first run come first.
template <class K>
ARCWELD_DEVICE int of_first_run(const K* first, int first_count, const K* second, int second_count, int number) {
  int begin = number > second_count ? number - second_count : 0;
  int end = number < first_count ? number : first_count;
  while (begin < end) {
    const int middle = (begin + end) >> 1;
    if (first[middle] <= second[number - 1 - middle])
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A thread's ITEMS neighbours, from ``at`` on, of ``n`` keys once each run of ``length`` keys, of an even number, is merged
// with the run behind it: finds where both runs begin to give them, then goes through both. ``length`` is a multiple of
// ITEMS, and so is ``at``. Returns how many there are. This is the merge path of Green, McColl and Bader (2012).
template <int ITEMS, class K>
ARCWELD_DEVICE int merged_keys(
    const K* keys, const int* places, int n, i64 length, int at, K (&key)[ITEMS], int (&place)[ITEMS]) {
  if (at >= n) return 0;
  const i64 start = at - at % (2 * length);
  const int middle = int(start + length < n ? start + length : n);
  const int end = int(start + 2 * length < n ? start + 2 * length : n);
  int a = int(start) + of_first_run(keys + start, middle - int(start), keys + middle, end - middle, at - int(start));
  int b = middle + at - a;
  K next_a = a < middle ? keys[a] : K(0), next_b = b < end ? keys[b] : K(0);
  const int number = ITEMS < end - at ? ITEMS : end - at;
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    if (i >= number) continue;
    const bool of_a = b >= end || (a < middle && next_a <= next_b);
    key[i] = of_a ? next_a : next_b;
    place[i] = places[of_a ? a : b];
    if (of_a) {
      ++a;
      next_a = a < middle ? keys[a] : K(0);
    } else {
      ++b;
      next_b = b < end ? keys[b] : K(0);
    }
  }
  return number;
}

// Sorts ``number`` of a thread's keys by exchanging neighbours, so that equal ones keep their order.
template <int ITEMS, class K>
ARCWELD_DEVICE void sort_own(K (&key)[ITEMS], int (&place)[ITEMS], int number) {
#pragma unroll
  for (int round = 0; round < ITEMS; ++round) {
#pragma unroll
    for (int i = round % 2; i + 1 < ITEMS; i += 2) {
      if (i + 1 < number && key[i + 1] < key[i]) {
        const K high = key[i];
        const int behind = place[i];
        key[i] = key[i + 1];
        place[i] = place[i + 1];
        key[i + 1] = high;
        place[i + 1] = behind;
      }
    }
  }
}

// Sorts ``count`` keys in shared memory, THREADS * ITEMS at most, and their places with them. What was written there before
// must be visible to all threads of the block, each of which calls it; the result is.
template <int THREADS, int ITEMS, class K>
ARCWELD_DEVICE void sort_in_block(K* keys, int* places, int count) {
  const int at = threadIdx.x * ITEMS;
  K key[ITEMS];
  int place[ITEMS];
  int number = count - at < ITEMS ? count - at : ITEMS;
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    key[i] = i < number ? keys[at + i] : K(0);
    place[i] = i < number ? places[at + i] : 0;
  }
  sort_own(key, place, number);
  for (int length = ITEMS;; length *= 2) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (i < number) {
        keys[at + i] = key[i];
        places[at + i] = place[i];
      }
    }
    __syncthreads();
    if (length >= count) break;
    number = merged_keys(keys, places, count, length, at, key, place);
    __syncthreads();  // all threads have read the runs
  }
}
