// Functions of the library of the ops, and through it of torch's, which it is linked with.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace lstm_fast {

class OpsLibrary {
 public:
  // Of a library that is loaded, and stays so.
  explicit OpsLibrary(const std::string& path)
      : library_(dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY)) {
    if (!library_) throw std::runtime_error(path + " is not loaded");
  }

  template <typename F>
  void find(F& function, const char* name) const {
    function = reinterpret_cast<F>(dlsym(library_, name));
    if (!function) throw std::runtime_error(std::string("the ops have no ") + name);
  }

 private:
  void* library_;
};

}  // namespace lstm_fast
