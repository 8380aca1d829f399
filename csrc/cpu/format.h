// How stored values may be given.
#pragma once

namespace m3el {

enum class Format { f32, bf16 };

}  // namespace m3el
