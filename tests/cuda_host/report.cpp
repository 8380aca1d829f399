// Findings of a launch, and the source lines of places in the library.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace cuda_host {
namespace {

constexpr size_t kShown = 10;

struct Finding {
  std::string text, where;  // where: known already, or else the place `code`
  uint32_t code, other;
};
std::vector<Finding> found;
std::set<std::pair<std::string, uint32_t>> known;
std::set<std::string> known_lines;

void add(const char* kind, const std::string& text, const std::string& where, uint32_t code, uint32_t other) {
  found.push_back({std::string(kind) + ": block " + block_text(machine.block) + ", " + text, where, code, other});
}

std::string file_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// "file.cu:12" by place, as far as addr2line knows them.
std::map<uint32_t, std::string> source_lines(const std::set<uint32_t>& codes) {
  std::map<uint32_t, std::string> lines;
  Dl_info library;
  if (codes.empty() || dladdr(reinterpret_cast<void*>(&source_lines), &library) == 0) return lines;
  std::string command = std::string("addr2line -e '") + library.dli_fname + "'";
  char text[4096];
  for (const uint32_t code : codes) {
    std::snprintf(text, sizeof text, "0x%x", code);
    lines[code] = std::string("code ") + text;
    std::snprintf(text, sizeof text, " 0x%x", code - 1);  // the call, not what comes behind it
    command += text;
  }
  FILE* const pipe = popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return lines;
  for (const uint32_t code : codes) {
    if (std::fgets(text, sizeof text, pipe) == nullptr) break;
    std::string line = text;
    line = line.substr(0, line.find_first_of(" \n"));
    if (line.find("??") == std::string::npos) lines[code] = file_name(line);
  }
  pclose(pipe);
  return lines;
}

}  // namespace

bool is_new(const char* kind, uint32_t code) { return known.insert({kind, code}).second; }

void report(const char* kind, const std::string& text, uint32_t code, uint32_t other) {
  add(kind, text, "", code, other);
}

void report(const char* kind, const std::string& text, Where where) {
  const std::string line = line_text(where);
  if (known_lines.insert(kind + line).second) add(kind, text, line, 0, 0);
}

std::string findings() {
  const std::vector<Finding> all = std::exchange(found, {});
  known.clear(), known_lines.clear();
  if (all.empty()) return "";
  const size_t shown = std::min(all.size(), kShown);
  std::set<uint32_t> codes;
  for (size_t i = 0; i < shown; ++i)
    for (const uint32_t code : {all[i].code, all[i].other})
      if (code != 0) codes.insert(code);
  const auto lines = source_lines(codes);
  std::string text = std::string("kernel ") + machine.kernel + ": " + std::to_string(all.size()) +
                     (all.size() == 1 ? " finding" : " findings");
  for (size_t i = 0; i < shown; ++i) {
    const Finding& finding = all[i];
    text += "\n  " + finding.text + " [" + (finding.where.empty() ? lines.at(finding.code) : finding.where);
    if (finding.other != 0) text += ", the other at " + lines.at(finding.other);
    text += "]";
  }
  return text;
}

std::string block_text(uint3 block) {
  char text[48];
  std::snprintf(text, sizeof text, "(%u, %u, %u)", block.x, block.y, block.z);
  return text;
}

std::string line_text(Where where) { return file_name(where.file) + ":" + std::to_string(where.line); }

std::string threads_text(const std::vector<unsigned>& threads) {
  std::string text = threads.size() == 1 ? "thread " : "threads ";
  for (size_t i = 0; i < threads.size();) {
    size_t end = i;
    while (end + 1 < threads.size() && threads[end + 1] == threads[end] + 1) ++end;
    if (i > 0) text += ", ";
    text += std::to_string(threads[i]);
    if (end > i) text.append("-").append(std::to_string(threads[end]));
    i = end + 1;
  }
  return text;
}

}  // namespace cuda_host
