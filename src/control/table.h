// Columns for people: text tables and short forms of quantities.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vremote::control {

// "0", "812 B", "4.0 KiB", "1.5 MiB"
std::string human_bytes(uint64_t bytes);
// "350 ms", "12.0 s", "5 min 3 s", "2 h 10 min", "3 d 4 h"
std::string human_duration(int64_t ms);
// "0.8 us", "42 us", "1.3 ms", "2.0 s"
std::string human_microseconds(double us);

// Rows of cells, each column as wide as its widest cell, two spaces between. Columns of `right` (by
// index) are aligned to the right.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> header, std::vector<size_t> right = {});
  void add(std::vector<std::string> row);
  // Every line begins with `indent` and ends with a newline; no trailing spaces.
  std::string print(const std::string& indent = "") const;

 private:
  std::vector<std::vector<std::string>> rows_;  // the header first
  std::vector<size_t> right_;
};

}  // namespace vremote::control
