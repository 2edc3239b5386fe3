#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>
#include <memory>
#include <sstream>
#include <string_view>

#include "cli/commands.h"
#include "intercept/namespace_source.h"
#include "node/config/config.h"

namespace vremote::cli {

namespace {

// The list of subcommands shows the first line of each description; its own --help shows it all.
class FirstLines : public CLI::Formatter {
 public:
  std::string make_subcommand(const CLI::App* command) const override {
    const std::string text = command->get_description();
    std::ostringstream line;
    CLI::detail::format_help(line, command->get_display_name(true), text.substr(0, text.find('\n')),
                             get_column_width());
    return line.str();
  }
};

}  // namespace

void build_app(CLI::App& app, Context& context) {
  app.description(
      "VRemote Storage: many Linux machines share one strongly coherent page cache.\n"
      "Start with `vremote playground --nodes 2 --dir ~/play`: a whole cluster on this machine.");
  app.require_subcommand(1);
  add_node_command(app, context);
  add_cluster_command(app, context);
  add_playground_command(app, context);
  add_recover_command(app, context);
  add_run_command(app, context);
  add_status_command(app, context);
  add_upgrade_command(app, context);
  add_version_command(app, context);
  // After the subcommands, which would each inherit these two.
  app.formatter(std::make_shared<FirstLines>());
  app.set_help_all_flag("--help-all", "The help of every subcommand");
  app.set_version_flag("--version", "vremote " VREMOTE_VERSION, "The version of this program");
  app.footer(
      "Environment:\n"
      "  VREMOTE_CONFIG   the default of --config\n"
      "  VREMOTE_CONTROL  the control socket that `run`, `status` and `upgrade` ask when no\n"
      "                   configuration is named\n\n"
      "Exit status: 0 done, 1 failed while running, 2 wrong use or configuration;\n"
      "`vremote run` ends as its command ends.\n"
      "`vremote SUBCOMMAND --help` tells more; the manual is vremote(1).");
}

int run_cli(int argc, const char* const* argv, const Runners& runners) {
  Context context{runners, {}, false, {}};
  // Everything after "--" belongs to the command to run: the parser never sees it, whatever it
  // looks like.
  std::vector<std::string> own;
  for (int i = 1; i < argc; ++i) {
    if (!context.has_command && std::string_view(argv[i]) == "--") {
      context.has_command = true;
    } else {
      (context.has_command ? context.command : own).emplace_back(argv[i]);
    }
  }
  CLI::App app("", "vremote");
  build_app(app, context);
  // The parser would only say that there is no subcommand, at both levels (`vremote cluster X`).
  const CLI::App* within = &app;
  std::string called = "vremote";
  for (const std::string& word : own) {
    const auto known = within->get_subcommands([](const CLI::App*) { return true; });
    if (known.empty() || word.starts_with('-')) break;
    const auto named = std::ranges::find_if(
        known, [&word](const CLI::App* command) { return command->check_name(word); });
    if (named == known.end()) {
      tell_error(
          fmt::format("{}: there is no subcommand '{}'\nTry `{} --help`.\n", called, word, called));
      return kExitUsage;
    }
    within = *named;
    called += " " + word;
  }
  try {
    std::reverse(own.begin(), own.end());  // CLI11 wants them last first
    app.parse(std::move(own));
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);  // --help
    const auto named = app.get_subcommands();
    const std::string program = named.empty() ? "vremote" : "vremote " + named[0]->get_name();
    tell_error(fmt::format("{}: {}\nTry `{} --help`.\n", program, error.what(), program));
    return kExitUsage;
  }
  if (context.has_command && !app.got_subcommand("run"))
    return complain("", "only `vremote run` takes a command after --", kExitUsage);
  int status = kExitFailed;
  try {
    status = context.action();
  } catch (const std::exception&
               error) {  // of fmt, when standard output fails; of std, when memory does
    return complain("", error.what(), kExitFailed);
  }
  // A full disk or a closed pipe behind stdout is a failure like any other.
  if (std::fflush(stdout) != 0 && status == 0)
    return complain("", "cannot write to standard output", kExitFailed);
  return status;
}

// CLI::Range lets "nan" pass, which is not outside of anything.
std::string check_seconds(const std::string& text) {
  double seconds = 0;
  if (CLI::detail::lexical_cast(text, seconds) && seconds >= 0.1 && seconds <= 3600) return {};
  return fmt::format("{} is no number of seconds from 0.1 to 3600", text);
}

void tell_error(const std::string& text) { std::fputs(text.c_str(), stderr); }

int complain(const char* subcommand, const std::string& sentence, int status) {
  tell_error(fmt::format("vremote{}{}: {}\n", *subcommand != 0 ? " " : "", subcommand, sentence));
  return status;
}

Result<std::string> control_socket_for(const std::string& config_file) {
  if (config_file.empty()) return intercept::find_control_socket();
  VR_TRY(config, node::read_config(config_file));
  return config.control_socket;
}

}  // namespace vremote::cli
