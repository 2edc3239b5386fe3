// The operations of a Call, apart from the other messages because there are many. Internal to this
// folder.
#pragma once

#include "coherence/messages.h"
#include "wire/convert.h"

namespace vremote::wire {

struct EncodedOperation {
  fb::Operation type;
  flatbuffers::Offset<void> table;
};
Result<EncodedOperation> encode_operation(const coherence::Operation& operation,
                                          flatbuffers::FlatBufferBuilder& builder,
                                          BulkWriter& bulk);
Result<coherence::Operation> decode_operation(const fb::CallFrame& call, const Bytes& bulk);

}  // namespace vremote::wire
