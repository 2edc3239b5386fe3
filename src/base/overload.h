// Several lambdas as one visitor for std::visit.
#pragma once

namespace vremote {

template <typename... Fs>
struct Overload : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overload(Fs...) -> Overload<Fs...>;

}  // namespace vremote
