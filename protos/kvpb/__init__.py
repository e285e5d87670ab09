"""The wire: protobuf messages and gRPC stubs, generated from the .proto files beside this one."""
