"""Prints an OTLP request for traces, as the official Python messages read it."""

import sys

from google.protobuf.json_format import MessageToJson
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

m = ExportTraceServiceRequest()
m.ParseFromString(sys.stdin.buffer.read())
sys.stdout.write(MessageToJson(m))
