// What the C++ that CXXRTL generates needs of its runtime, made for speed of compilation and of
// simulation: a value of up to 64 bits is one integer of the machine instead of an array of 32-bit
// chunks, and nothing of the C++ library is used.
//
// The meaning of every function is that of the runtime it stands in for; the tests compare the two.
//
// Ref: the header cxxrtl.h of the synthesiser, sections on values, expressions and cells.

#ifndef GRADIRON_CXXRTL_FAST_H
#define GRADIRON_CXXRTL_FAST_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FAST inline __attribute__((always_inline))

namespace cxxrtl_fast {

template<bool Condition, class Yes, class No> struct choose { typedef Yes type; };
template<class Yes, class No> struct choose<false, Yes, No> { typedef No type; };
template<class T> struct bare { typedef T type; };
template<class T> struct bare<T &> { typedef T type; };

constexpr size_t larger(size_t a, size_t b) { return a > b ? a : b; }

// Ones in the lowest bits.
constexpr uint64_t ones(size_t bits) { return bits >= 64 ? ~uint64_t(0) : (uint64_t(1) << bits) - 1; }

template<class T> struct expression;

template<size_t Bits>
struct value : public expression<value<Bits>> {
  static constexpr size_t bits = Bits;
  static constexpr size_t words = Bits <= 64 ? 1 : (Bits + 63) / 64;
  static constexpr bool narrow = Bits <= 64;
  // Bits of the highest word that are used.
  static constexpr uint64_t top = Bits == 0 ? 0 : ones((Bits - 1) % 64 + 1);
  // Not 16 bits: instructions with operands of that size stall the decoder of many processors.
  typedef typename choose<(Bits <= 8), uint8_t,
      typename choose<(Bits <= 32), uint32_t, uint64_t>::type>::type word;

  word data[words];

  constexpr value() : data{} {}

  // From chunks of 32 bits, the lowest first.
  template<class... Chunks>
  explicit constexpr value(uint32_t first, Chunks... rest) : data{} {
    const uint32_t chunks[] = {first, uint32_t(rest)...};
    for (size_t n = 0; n < sizeof...(rest) + 1; n++) {
      if (narrow)
        data[0] = word(uint64_t(data[0]) | uint64_t(chunks[n]) << (n & 1) * 32);
      else
        data[n / 2] = word(uint64_t(data[n / 2]) | uint64_t(chunks[n]) << (n & 1) * 32);
    }
  }

  static FAST value of(uint64_t number) {
    value result;
    result.data[0] = word(narrow ? number & top : number);
    return result;
  }

  FAST const value &val() const { return *this; }
  FAST uint64_t low() const { return data[0]; }

  // Bits Start upwards.
  template<size_t Start, size_t Count>
  FAST value<Count> part() const {
    if constexpr (narrow) {
      if constexpr (Count == 0) return value<Count>();
      else return value<Count>::of(uint64_t(data[0]) >> Start);
    } else {
      value<Count> result;
      constexpr size_t skip = Start / 64, shift = Start % 64;
      for (size_t n = 0; n < value<Count>::words; n++) {
        uint64_t piece = skip + n < words ? uint64_t(data[skip + n]) >> shift : 0;
        if (shift != 0 && skip + n + 1 < words) piece |= uint64_t(data[skip + n + 1]) << (64 - shift) % 64;
        result.data[n] = typename value<Count>::word(n == value<Count>::words - 1 ? piece & value<Count>::top : piece);
      }
      return result;
    }
  }

  // Added to a wider value in which these bits are zero.
  template<size_t Start, size_t Wide>
  FAST void into(value<Wide> &target) const {
    if constexpr (Wide <= 64) {
      if constexpr (Start < 64) target.data[0] |= typename value<Wide>::word(uint64_t(data[0]) << Start);
    } else {
      constexpr size_t skip = Start / 64, shift = Start % 64;
      for (size_t n = 0; n < words; n++) {
        if (skip + n < value<Wide>::words) target.data[skip + n] |= uint64_t(data[n]) << shift;
        // The part above, unless there are no bits in it.
        if (shift != 0 && shift + Bits - 64 * n > 64 && skip + n + 1 < value<Wide>::words)
          target.data[skip + n + 1] |= uint64_t(data[n]) >> (64 - shift) % 64;
      }
    }
  }

  // Shifted to the left by a constant, in a wider value.
  template<size_t Wide, size_t Start>
  FAST value<Wide> placed() const {
    value<Wide> result;
    into<Start>(result);
    return result;
  }

  template<size_t Start, size_t Count>
  FAST void put(const value<Count> &source) {
    if constexpr (narrow) {
      constexpr uint64_t mask = ones(Count) << (Start % 64);
      data[0] = word((uint64_t(data[0]) & ~mask) | uint64_t(source.data[0]) << Start);
    } else {
      value mask = value<Count>().bit_not().template placed<Bits, Start>();
      *this = bit_and(mask.bit_not()).bit_or(source.template placed<Bits, Start>());
    }
  }

  template<size_t New>
  FAST value<New> zcast() const {
    if constexpr (New == Bits) return *this;
    else if constexpr (New < Bits) return part<0, New>();
    else return placed<New, 0>();
  }

  template<size_t New>
  FAST value<New> scast() const {
    if constexpr (New <= Bits) return zcast<New>();
    else if constexpr (Bits == 0) return value<New>();
    else if constexpr (New <= 64) return value<New>::of(uint64_t(number()));
    else {
      value<New> result = placed<New, 0>();
      if (is_neg()) {
        value<New - Bits> fill;
        result.template put<Bits, New - Bits>(fill.bit_not());
      }
      return result;
    }
  }

  // Sign-extended; up to 64 bits.
  FAST int64_t number() const {
    static_assert(narrow && Bits > 0, "fits no integer");
    return int64_t(uint64_t(data[0]) << (64 - Bits) % 64) >> (64 - Bits) % 64;
  }

  template<size_t Count>
  FAST value<Bits * Count> repeat() const {
    static_assert(Bits == 1, "only single bits are repeated");
    return data[0] ? value<Bits * Count>().bit_not() : value<Bits * Count>();
  }

  FAST explicit operator bool() const { return !is_zero(); }

  FAST bool is_zero() const {
    uint64_t any = 0;
    for (size_t n = 0; n < words; n++) any |= data[n];
    return any == 0;
  }

  FAST bool is_neg() const { return uint64_t(data[words - 1]) >> ((Bits - 1) % 64) & 1; }

  FAST bool same(const value &other) const {
    uint64_t differ = 0;
    for (size_t n = 0; n < words; n++) differ |= uint64_t(data[n]) ^ uint64_t(other.data[n]);
    return differ == 0;
  }

  FAST bool operator==(const value &other) const { return same(other); }
  FAST bool operator!=(const value &other) const { return !same(other); }

#define EACH(name, operation) \
  FAST value name(const value &other) const { \
    value result; \
    for (size_t n = 0; n < words; n++) result.data[n] = word(data[n] operation other.data[n]); \
    return result; \
  }
  EACH(bit_and, &)
  EACH(bit_or, |)
  EACH(bit_xor, ^)
#undef EACH

  FAST value bit_not() const {
    value result;
    for (size_t n = 0; n < words; n++)
      result.data[n] = word(n == words - 1 ? ~uint64_t(data[n]) & top : ~uint64_t(data[n]));
    return result;
  }

  // this + other, or this - other; `above` becomes the carry out of the highest bit.
  template<bool Subtract>
  FAST value sum(const value &other, bool &above) const {
    value result;
    if constexpr (narrow && Bits < 64) {
      uint64_t total = uint64_t(data[0]) + (Subtract ? (~uint64_t(other.data[0]) & top) + 1 : uint64_t(other.data[0]));
      above = total >> Bits & 1;
      result.data[0] = word(total & top);
    } else {
      uint64_t carry = Subtract;
      for (size_t n = 0; n < words; n++) {
        const uint64_t used = n == words - 1 ? top : ~uint64_t(0);
        const uint64_t b = (Subtract ? ~uint64_t(other.data[n]) : uint64_t(other.data[n])) & used;
        const uint64_t partial = uint64_t(data[n]) + b;
        const uint64_t total = partial + carry;
        carry = (partial < b) | (total < carry);
        if (used != ~uint64_t(0)) carry = total > used;
        result.data[n] = word(total & used);
      }
      above = carry;
    }
    return result;
  }

  FAST value add(const value &other) const {
    bool above;
    return sum<false>(other, above);
  }
  FAST value sub(const value &other) const {
    bool above;
    return sum<true>(other, above);
  }
  FAST value neg() const { return value().sub(*this); }

  FAST bool below(const value &other) const {
    if constexpr (narrow) return data[0] < other.data[0];
    bool above;
    sum<true>(other, above);
    return !above;
  }
  FAST bool below_signed(const value &other) const {
    if constexpr (Bits == 0) return false;
    else if constexpr (narrow) return number() < other.number();
    else return is_neg() != other.is_neg() ? is_neg() : below(other);
  }

  template<size_t Result>
  value<Result> mul(const value &other) const {
    if constexpr (Result <= 64) return value<Result>::of(low() * other.low());
    else {
      // Pieces of 32 bits.
      constexpr size_t count = value<Result>::words * 2;
      uint64_t pieces[count + 1] = {};
      for (size_t n = 0; n < 2 * words; n++)
        for (size_t k = 0; k < 2 * words && n + k < count; k++) {
          const uint64_t a = uint64_t(data[n / 2]) >> (n & 1) * 32 & 0xffffffffu;
          const uint64_t b = uint64_t(other.data[k / 2]) >> (k & 1) * 32 & 0xffffffffu;
          pieces[n + k] += a * b;
          pieces[n + k + 1] += pieces[n + k] >> 32;
          pieces[n + k] &= 0xffffffffu;
        }
      value<Result> result;
      for (size_t n = 0; n < value<Result>::words; n++)
        result.data[n] = pieces[2 * n] | pieces[2 * n + 1] << 32;
      result.data[value<Result>::words - 1] &= value<Result>::top;
      return result;
    }
  }

  // A shift amount, or the width where it is at least that.
  template<size_t Amount>
  static FAST size_t limited(const value<Amount> &amount) {
    for (size_t n = 1; n < value<Amount>::words; n++)
      if (amount.data[n]) return Bits;
    return amount.low() < Bits ? size_t(amount.low()) : Bits;
  }

  template<size_t Amount>
  FAST value shl(const value<Amount> &amount) const {
    const size_t by = limited(amount);
    if constexpr (narrow) return by >= Bits ? value() : of(uint64_t(data[0]) << by);
    value result;
    const size_t skip = by / 64, shift = by % 64;
    for (size_t n = words; n-- > skip;) {
      uint64_t piece = data[n - skip] << shift;
      if (shift && n > skip) piece |= data[n - skip - 1] >> (64 - shift);
      result.data[n] = n == words - 1 ? piece & top : piece;
    }
    return result;
  }

  template<size_t Amount>
  FAST value shr(const value<Amount> &amount) const {
    const size_t by = limited(amount);
    if constexpr (narrow) return by >= Bits ? value() : of(uint64_t(data[0]) >> by);
    value result;
    const size_t skip = by / 64, shift = by % 64;
    for (size_t n = 0; n + skip < words; n++) {
      uint64_t piece = data[n + skip] >> shift;
      if (shift && n + skip + 1 < words) piece |= data[n + skip + 1] << (64 - shift);
      result.data[n] = piece;
    }
    return result;
  }

  template<size_t Amount>
  FAST value sshr(const value<Amount> &amount) const {
    const size_t by = limited(amount);
    if constexpr (narrow) return of(uint64_t(number() >> (by >= Bits ? Bits - 1 : by)));
    if (!is_neg()) return shr(amount);
    return bit_not().shr(amount).bit_not();
  }
};

// --- parts and concatenations, on both sides of an assignment ------------------------------------

template<class T, size_t Stop, size_t Start>
struct slice_of : public expression<slice_of<T, Stop, Start>> {
  static constexpr size_t bits = Stop - Start + 1;
  T &whole;

  FAST slice_of(T &whole) : whole(whole) {}
  slice_of(const slice_of &) = delete;

  FAST value<bits> val() const { return whole.val().template part<Start, bits>(); }
  template<size_t At, size_t Wide>
  FAST void into(value<Wide> &target) const { val().template into<At>(target); }
  FAST operator value<bits>() const { return val(); }

  FAST slice_of &operator=(const value<bits> &source) {
    value<T::bits> changed = whole.val();
    changed.template put<Start, bits>(source);
    whole = changed;
    return *this;
  }
};

template<class T, class U>
struct concat_of : public expression<concat_of<T, U>> {
  static constexpr size_t bits = T::bits + U::bits;
  T &high;
  U &low_;

  FAST concat_of(T &high, U &low) : high(high), low_(low) {}
  concat_of(const concat_of &) = delete;

  FAST value<bits> val() const {
    value<bits> result;
    into<0>(result);
    return result;
  }
  // Piece by piece, so that a long concatenation takes no more steps than it has pieces.
  template<size_t At, size_t Wide>
  FAST void into(value<Wide> &target) const {
    low_.template into<At>(target);
    high.template into<At + U::bits>(target);
  }
  FAST operator value<bits>() const { return val(); }

  FAST concat_of &operator=(const value<bits> &source) {
    high = source.template part<U::bits, T::bits>();
    low_ = source.template part<0, U::bits>();
    return *this;
  }
};

template<class T>
struct expression {
  template<size_t Stop, size_t Start = Stop>
  FAST slice_of<const T, Stop, Start> slice() const { return {*static_cast<const T *>(this)}; }

  template<size_t Stop, size_t Start = Stop>
  FAST slice_of<T, Stop, Start> slice() { return {*static_cast<T *>(this)}; }

  template<class U>
  FAST concat_of<const T, const typename bare<U>::type> concat(const U &other) const {
    return {*static_cast<const T *>(this), other};
  }

  template<class U>
  FAST concat_of<T, typename bare<U>::type> concat(U &&other) {
    return {*static_cast<T *>(this), other};
  }
};

// --- memories ------------------------------------------------------------------------------------

template<size_t Width>
struct memory {
  static constexpr size_t kPending = 8;  // writes in one cycle
  struct write {
    size_t index;
    value<Width> val, mask;
    int priority;
  };

  const size_t depth;
  value<Width> *const data;
  size_t count = 0;
  write pending[kPending];

  explicit memory(size_t depth)
      : depth(depth), data(static_cast<value<Width> *>(calloc(depth, sizeof(value<Width>)))) {
    if (!data) abort();
  }
  ~memory() { free(data); }
  memory(const memory &) = delete;
  memory &operator=(const memory &) = delete;

  FAST const value<Width> &operator[](size_t index) const { return data[index]; }

  // A write takes effect after the edge, those of low priority first.
  FAST void update(size_t index, const value<Width> &val, const value<Width> &mask, int priority) {
    if (mask.is_zero()) return;
    size_t place = count++;
    for (; place > 0 && pending[place - 1].priority > priority; place--)
      pending[place] = pending[place - 1];
    pending[place].index = index;
    pending[place].val = val;
    pending[place].mask = mask;
    pending[place].priority = priority;
  }

  FAST void commit() {
    for (size_t n = 0; n < count; n++) {
      value<Width> &cell = data[pending[n].index];
      cell = cell.bit_and(pending[n].mask.bit_not()).bit_or(pending[n].val.bit_and(pending[n].mask));
    }
    count = 0;
  }

  template<size_t Count>
  void fill(size_t first, const value<Width> (&values)[Count]) {
    memcpy(data + first, values, sizeof(values));
  }
};

struct memory_index {
  bool valid;
  size_t index;

  template<size_t Bits>
  FAST memory_index(const value<Bits> &address, size_t offset, size_t depth) {
    static_assert(Bits <= 32, "memory address is too wide");
    const size_t number = address.low();
    valid = number >= offset && number < offset + depth;
    index = number - offset;
  }
};

// What an assertion of the design says when it fails.
struct message {
  char data[1024] = "";
  size_t count = 0;

  bool empty() const { return count == 0; }

  message &add(const char *text) {
    while (*text && count + 1 < sizeof data) data[count++] = *text++;
    data[count] = 0;
    return *this;
  }

  message &number(uint64_t value, unsigned base) {
    char digits[65];
    char *at = digits + sizeof digits - 1;
    *at = 0;
    do *--at = "0123456789abcdef"[value % base]; while (value /= base);
    return add(at);
  }
};

// --- cells ---------------------------------------------------------------------------------------

#define UNARY(name, result) \
  template<size_t Y, size_t A> \
  FAST value<Y> name(const value<A> &a) { return result; }
#define BINARY(name, result) \
  template<size_t Y, size_t A, size_t B> \
  FAST value<Y> name(const value<A> &a, const value<B> &b) { return result; }
// The same with operands extended without and with sign.
#define BOTH(name, operation) \
  BINARY(name##_uu, a.template zcast<Y>().operation(b.template zcast<Y>())) \
  BINARY(name##_ss, a.template scast<Y>().operation(b.template scast<Y>()))

UNARY(logic_not, value<Y>::of(!a))
BINARY(logic_and, value<Y>::of(bool(a) && bool(b)))
BINARY(logic_or, value<Y>::of(bool(a) || bool(b)))

template<size_t A>
FAST bool odd(const value<A> &a) {
  uint64_t all = 0;
  for (size_t n = 0; n < value<A>::words; n++) all ^= a.data[n];
  return __builtin_parityll(all);
}

UNARY(reduce_and, value<Y>::of(a.bit_not().is_zero()))
UNARY(reduce_or, value<Y>::of(bool(a)))
UNARY(reduce_bool, value<Y>::of(bool(a)))
UNARY(reduce_xor, value<Y>::of(odd(a)))
UNARY(reduce_xnor, value<Y>::of(!odd(a)))

UNARY(not_u, a.template zcast<Y>().bit_not())
UNARY(not_s, a.template scast<Y>().bit_not())
UNARY(pos_u, a.template zcast<Y>())
UNARY(pos_s, a.template scast<Y>())
UNARY(neg_u, a.template zcast<Y>().neg())
UNARY(neg_s, a.template scast<Y>().neg())

BOTH(and, bit_and)
BOTH(or, bit_or)
BOTH(xor, bit_xor)
BINARY(xnor_uu, a.template zcast<Y>().bit_xor(b.template zcast<Y>()).bit_not())
BINARY(xnor_ss, a.template scast<Y>().bit_xor(b.template scast<Y>()).bit_not())
BOTH(add, add)
BOTH(sub, sub)
BINARY(mul_uu, (a.template zcast<larger(A, B)>().template mul<Y>(b.template zcast<larger(A, B)>())))
BINARY(mul_ss, (a.template scast<Y>().template mul<Y>(b.template scast<Y>())))

BINARY(shl_uu, a.template zcast<Y>().shl(b))
BINARY(shl_su, a.template scast<Y>().shl(b))
BINARY(sshl_uu, a.template zcast<Y>().shl(b))
BINARY(sshl_su, a.template scast<Y>().shl(b))
BINARY(shr_uu, a.shr(b).template zcast<Y>())
BINARY(shr_su, a.template scast<Y>().shr(b))
BINARY(sshr_uu, a.shr(b).template zcast<Y>())
BINARY(sshr_su, a.sshr(b).template scast<Y>())
BINARY(shift_uu, (shr_uu<Y>(a, b)))
BINARY(shift_su, (shr_su<Y>(a, b)))
BINARY(shiftx_uu, (shr_uu<Y>(a, b)))
BINARY(shiftx_su, (shr_su<Y>(a, b)))

// Compared in the width of the wider operand.
#define COMPARE(name, result) \
  template<size_t Y, size_t A, size_t B> \
  FAST value<Y> name##_uu(const value<A> &left, const value<B> &right) { \
    const auto a = left.template zcast<larger(A, B)>(), b = right.template zcast<larger(A, B)>(); \
    return value<Y>::of(result); \
  }
#define COMPARE_SIGNED(name, result) \
  template<size_t Y, size_t A, size_t B> \
  FAST value<Y> name##_ss(const value<A> &left, const value<B> &right) { \
    const auto a = left.template scast<larger(A, B)>(), b = right.template scast<larger(A, B)>(); \
    return value<Y>::of(result); \
  }
COMPARE(eq, a.same(b))
COMPARE(ne, !a.same(b))
COMPARE(eqx, a.same(b))
COMPARE(nex, !a.same(b))
COMPARE(lt, a.below(b))
COMPARE(gt, b.below(a))
COMPARE(le, !b.below(a))
COMPARE(ge, !a.below(b))
COMPARE_SIGNED(eq, a.same(b))
COMPARE_SIGNED(ne, !a.same(b))
COMPARE_SIGNED(eqx, a.same(b))
COMPARE_SIGNED(nex, !a.same(b))
COMPARE_SIGNED(lt, a.below_signed(b))
COMPARE_SIGNED(gt, b.below_signed(a))
COMPARE_SIGNED(le, !b.below_signed(a))
COMPARE_SIGNED(ge, !a.below_signed(b))

#undef UNARY
#undef BINARY
#undef BOTH
#undef COMPARE
#undef COMPARE_SIGNED

}  // namespace cxxrtl_fast

#endif
