"""m3el_fast behind other libraries' interfaces; a module says what to install where its library is missing."""
