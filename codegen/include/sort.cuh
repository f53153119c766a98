// Stable merge sort of keys and places, in plain CUDA C++. Include it after prims.cuh.
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

// How many of ``count`` keys in order come before ``key``: smaller ones, and equal ones if ``equal``.
template <class K>
ARCWELD_DEVICE int keys_before(const K* keys, int count, K key, bool equal) {
  int begin = 0, end = count;
  while (begin < end) {
    const int middle = (begin + end) >> 1;
    const K other = keys[middle];
    if (other < key || (equal && other == key))
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// The place of key ``i`` of ``n`` once each run of ``length`` keys, of an even number, is merged with the run behind it.
// Of equal keys, those of the first run come first.
template <class K>
ARCWELD_DEVICE int merged_place(const K* keys, int n, int length, int i) {
  const i64 start = i - i % (i64(length) * 2);
  const int middle = int(start + length < n ? start + length : n);
  const int end = int(start + i64(length) * 2 < n ? start + i64(length) * 2 : n);
  if (i < middle) return i + keys_before(keys + middle, end - middle, keys[i], false);
  return i - (middle - int(start)) + int(keys_before(keys + start, middle - int(start), keys[i], true));
}
