// Operators whose errors say what went wrong in PyTorch, not in which line of ours.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

// What went wrong last in this thread. PyTorch 2.13 and later have it; earlier ones print it and leave this null.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace ccn {

inline bool comes_from_pytorch(const std::exception& error) {
  return torch_exception_get_what_without_backtrace &&
         std::string(error.what()).find("API call failed") != std::string::npos;
}

template <auto kOperator>
struct Explained;

template <class Result, class... Args, Result (*kOperator)(Args...)>
struct Explained<kOperator> {
  static Result call(Args... args) {
    try {
      return kOperator(std::move(args)...);
    } catch (const std::runtime_error& error) {
      if (!comes_from_pytorch(error)) throw;
      throw std::runtime_error(torch_exception_get_what_without_backtrace());
    }
  }
};

}  // namespace ccn
