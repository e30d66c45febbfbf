// Tensors as the stable ABI has them: types, memory formats, uninitialised ones.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "dispatcher.h"
#include "native.h"

namespace ccn {

using aten::MemoryFormat;
using aten::ScalarType;

template <class T>
constexpr ScalarType kType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class T>
const T* data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

template <class T>
T* mutable_data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

template <class T>
T* data_or_null(const std::optional<Tensor>& t) { return t ? mutable_data<T>(*t) : nullptr; }

inline Axes shape_of(const Tensor& t) { return Axes(t.sizes().begin(), t.sizes().end()); }

inline Tensor empty(const Axes& shape, ScalarType type, const Tensor& like) { return aten::empty(shape, type, like); }

inline Tensor zeros(const Axes& shape, ScalarType type, const Tensor& like) {
  Tensor t = empty(shape, type, like);
  return torch::stable::zero_(t);
}

// Uninitialised, `batch` images of the type `type`, strided as `image` is.
inline Tensor empty_images(const Tensor& image, int64_t batch, ScalarType type) {
  Axes shape = shape_of(image);
  shape[0] = batch;
  if (image.is_contiguous()) return empty(shape, type, image);
  const Axes strides(image.strides().begin(), image.strides().end());
  return aten::empty_strided(shape, strides, type, image.device());
}

inline Tensor images(const Tensor& t, int64_t first, int64_t count) {
  if (count == t.size(0)) return t;
  Tensor whole = t;
  return torch::stable::narrow(whole, 0, first, count);
}

// How channels lie in memory. A linear layer's [N, C] counts as channels_last: one pixel, channels innermost.
inline bool is_channels_last(const Tensor& t) { return t.dim() == 2 || (!t.is_contiguous() && t.stride(1) == 1); }

// What ATen takes the strides for; where they could be either format, it is not channels_last.
inline bool suggests_channels_last(const Tensor& t) {
  const int64_t rank = t.dim();
  if (rank != 4 && rank != 5) return false;
  if (t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t axis = i == 0 ? 1 : i == rank - 1 ? 0 : rank - i;  // channels, innermost to outermost axis, batch
    if (t.size(axis) == 0 || t.stride(axis) < least) return false;
    if (axis == 0 && least == t.stride(1)) return false;
    least = t.stride(axis) * std::max<int64_t>(1, t.size(axis));
  }
  return true;
}

inline MemoryFormat format_of(bool channels_last, int64_t rank) {
  if (!channels_last || rank < 4) return MemoryFormat::Contiguous;
  return rank == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
}

inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

inline Tensor empty(const Axes& shape, ScalarType type, const Tensor& like, bool channels_last) {
  const MemoryFormat format = format_of(channels_last, static_cast<int64_t>(shape.size()));
  if (format == MemoryFormat::Contiguous) return empty(shape, type, like);
  return torch::stable::empty(shape, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor in_layout(const Tensor& t, bool channels_last, ScalarType type) {
  const MemoryFormat format = format_of(channels_last, t.dim());
  const Tensor typed = as_type(t, type);
  if (format == MemoryFormat::Contiguous && typed.is_contiguous()) return typed;
  return torch::stable::contiguous(typed, format);
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  return std::equal(a.strides().begin(), a.strides().end(), b.strides().begin());
}

// The tensor in dense memory, its axes in the order that empty_like gives them.
inline Tensor dense(const Tensor& t) {
  Tensor copy = torch::stable::empty_like(t);
  if (same_strides(t, copy)) return t;
  return torch::stable::copy_(copy, t);
}

inline void copy(const Tensor& from, Tensor to) { torch::stable::copy_(to, from); }

}  // namespace ccn
