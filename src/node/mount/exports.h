// The exports this node can show under its mount: its own and those its peers have told of.
// Thread-safe.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"

namespace vremote::node {

class AgentService;

struct ExportRoot {
  std::string name;
  AgentService* agent = nullptr;
  FileId root;
  bool read_only = false;  // for this node
};

class Exports {
 public:
  // A name that two homes export stays with the first; returns false then.
  bool add(ExportRoot root) {
    std::lock_guard lock(mutex_);
    auto [it, fresh] = roots_.try_emplace(root.name, root);
    if (!fresh && it->second.agent == root.agent) it->second = root;
    return fresh || it->second.agent == root.agent;
  }
  std::optional<ExportRoot> find(std::string_view name) const {
    std::lock_guard lock(mutex_);
    auto it = roots_.find(name);
    if (it == roots_.end()) return std::nullopt;
    return it->second;
  }
  bool read_only(const AgentService* agent, uint32_t export_index) const {
    std::lock_guard lock(mutex_);
    const ExportRoot* root = root_of(agent, export_index);
    return root != nullptr && root->read_only;
  }
  // Empty when it is not shown.
  std::string name_of(const AgentService* agent, uint32_t export_index) const {
    std::lock_guard lock(mutex_);
    const ExportRoot* root = root_of(agent, export_index);
    return root == nullptr ? std::string() : root->name;
  }
  std::vector<ExportRoot> all() const {
    std::lock_guard lock(mutex_);
    std::vector<ExportRoot> out;
    for (const auto& [name, root] : roots_) out.push_back(root);
    return out;
  }

 private:
  // With mutex_.
  const ExportRoot* root_of(const AgentService* agent, uint32_t export_index) const {
    for (const auto& [name, root] : roots_)
      if (root.agent == agent && root.root.export_index == export_index) return &root;
    return nullptr;
  }

  mutable std::mutex mutex_;
  std::map<std::string, ExportRoot, std::less<>> roots_;
};

}  // namespace vremote::node
