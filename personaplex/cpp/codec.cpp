extern "C" void* personaplex_codec_create(const void*) { return nullptr; }
