#include "library.hpp"

#include <dlfcn.h>

#include <cstdlib>

#include "ropevit/ropevit.hpp"
#include "text.hpp"

namespace ropevit {

Library::Library(const std::string& runtime, const std::filesystem::path& given, const char* variable,
                 const std::vector<std::string>& names, const std::string& cure)
    : runtime_(runtime) {
  std::vector<std::string> tried = names;
  const char* named = std::getenv(variable);
  if (!given.empty())
    tried = {given.string()};
  else if (named != nullptr && *named != '\0')
    tried = {named};
  std::string said;
  for (const std::string& each : tried) {
    handle_ = dlopen(each.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle_ != nullptr) {
      path_ = each;
      return;
    }
    if (said.empty()) said = first_line(dlerror());
  }
  throw BackendError(runtime + " can't be loaded (" + said + "): " + cure + ", and name its library in " + variable +
                     " or the options.");
}

void* Library::address(const char* name) const {
  void* found = dlsym(handle_, name);
  if (found == nullptr)
    throw BackendError(path_ + " is no " + runtime_ + " that this library knows: it lacks " + name + ".");
  return found;
}

}  // namespace ropevit
