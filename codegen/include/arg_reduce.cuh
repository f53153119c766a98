// Reductions that give the place of the largest or smallest element. Include it after prims.cuh.
#pragma once

// A candidate: an element and its index along the reduced axes.
template <class T>
struct Indexed {
  T value;
  i32 index;
};

// The better of two candidates. A NaN beats every number; between equals the lower index wins, or with LAST the higher.
template <bool MAX, bool LAST>
struct OpArg {
  template <class T>
  ARCWELD_DEVICE Indexed<T> operator()(const Indexed<T>& a, const Indexed<T>& b) const {
    const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
    const bool tie = a.value == b.value || (a_nan && b_nan);
    const bool a_in_front = LAST ? a.index > b.index : a.index < b.index;
    const bool a_better = a_nan != b_nan ? a_nan : (MAX ? a.value > b.value : a.value < b.value);
    return (tie ? a_in_front : a_better) ? a : b;
  }
};

// Loses against every element, whatever its value.
template <class T, bool LAST>
ARCWELD_DEVICE Indexed<T> no_candidate(T worst) {
  return {worst, LAST ? -1 : 2147483647};
}
