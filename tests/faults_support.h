// Short words for the cases of faults_test: each has a cluster of its own, whose daemons it may
// stop, kill and start.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "support/files.h"
#include "support/nodes.h"

namespace vremote::live {

class FaultsTest : public ::testing::Test {
 public:
  static std::string base;  // made by main()

 protected:
  // The first call decides.
  Nodes& nodes(size_t count = 2, const std::string& extra = {});

 private:
  std::unique_ptr<Nodes> nodes_;
};

// Runs `body` in a child; its process number. `body`'s value becomes the exit status.
pid_t in_child(const std::function<int()>& body);

}  // namespace vremote::live
