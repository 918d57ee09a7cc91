//! The OpenAPI document of a service, from its descriptors and their comments.

use std::collections::{BTreeMap, VecDeque};

use prost_reflect::{
    EnumDescriptor, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};
use serde_json::{Map, Value, json};

const INT64: &str = "^-?[0-9]+$";
const UINT64: &str = "^[0-9]+$";

/// Describes all methods except streams, with their requests and responses.
pub(super) fn document(service: &ServiceDescriptor) -> Value {
    let mut paths = Map::new();
    let mut schemas = Schemas::default();
    for method in service.methods() {
        if method.is_server_streaming() || method.is_client_streaming() {
            continue;
        }
        let path = format!("/{}/{}", service.full_name(), method.name());
        paths.insert(path, json!({ "post": operation(&method, &mut schemas) }));
    }
    let mut schemas = schemas.complete();
    schemas.insert("Error".to_owned(), error());
    schemas.insert("Problem".to_owned(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Chunk cache",
            "version": env!("CARGO_PKG_VERSION"),
            "description": comment(&service.parent_file(), service.path()),
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{}, { "token": [] }],
    })
}

fn operation(method: &MethodDescriptor, schemas: &mut Schemas) -> Value {
    let service = method.parent_service();
    let refused = json!({
        "description": "The call failed.",
        "content": {
            "application/json": { "schema": { "$ref": "#/components/schemas/Error" } },
            "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } },
        },
    });
    json!({
        "operationId": method.name(),
        "description": comment(&service.parent_file(), method.path()),
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": schemas.message(&method.input()) } },
        },
        "responses": {
            "200": {
                "description": "Done.",
                "content": { "application/json": { "schema": schemas.message(&method.output()) } },
            },
            "default": refused,
        },
    })
}

fn error() -> Value {
    json!({
        "type": "object",
        "required": ["code", "message"],
        "properties": {
            "code": { "type": "string", "description": "A gRPC code, in lower case." },
            "message": { "type": "string" },
            "details": {
                "type": "array",
                "description": "Messages of google.rpc: their bytes in base64, and in clear.",
                "items": {
                    "type": "object",
                    "required": ["type", "value"],
                    "properties": {
                        "type": { "type": "string" },
                        "value": { "type": "string" },
                        "debug": { "type": "object" },
                    },
                },
            },
        },
    })
}

fn problem() -> Value {
    json!({
        "type": "object",
        "description": "Who asks may not (RFC 9457).",
        "required": ["status", "title", "detail"],
        "properties": {
            "status": { "type": "integer" },
            "title": { "type": "string" },
            "detail": { "type": "string" },
        },
    })
}

/// Schemas by name, and those that are referred to but not written yet.
#[derive(Default)]
struct Schemas {
    written: BTreeMap<String, Value>,
    waiting: VecDeque<Named>,
}

enum Named {
    Message(MessageDescriptor),
    Values(EnumDescriptor),
}

impl Schemas {
    fn message(&mut self, message: &MessageDescriptor) -> Value {
        match message.full_name() {
            "google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
            "google.protobuf.Duration" => {
                json!({ "type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$" })
            }
            _ => {
                self.waiting.push_back(Named::Message(message.clone()));
                refer(message.full_name())
            }
        }
    }

    fn values(&mut self, values: &EnumDescriptor) -> Value {
        self.waiting.push_back(Named::Values(values.clone()));
        refer(values.full_name())
    }

    fn complete(mut self) -> Map<String, Value> {
        while let Some(next) = self.waiting.pop_front() {
            let name = match &next {
                Named::Message(message) => message.full_name(),
                Named::Values(values) => values.full_name(),
            };
            if self.written.contains_key(name) {
                continue;
            }
            let name = name.to_owned();
            let schema = match next {
                Named::Message(message) => self.object(&message),
                Named::Values(values) => {
                    let names: Vec<_> = values.values().map(|it| it.name().to_owned()).collect();
                    let description = comment(&values.parent_file(), values.path());
                    json!({ "type": "string", "enum": names, "description": description })
                }
            };
            self.written.insert(name, schema);
        }
        self.written.into_iter().collect()
    }

    fn object(&mut self, message: &MessageDescriptor) -> Value {
        let file = message.parent_file();
        let mut properties = Map::new();
        for field in message.fields() {
            let mut schema = self.field(&field);
            let description = comment(&file, field.path());
            if !description.is_empty() {
                schema["description"] = description.into();
            }
            properties.insert(field.json_name().to_owned(), schema);
        }
        json!({
            "type": "object",
            "description": comment(&file, message.path()),
            "properties": properties,
            "additionalProperties": false,
        })
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
            let values = self.kind(&entry.map_entry_value_field().kind());
            return json!({ "type": "object", "additionalProperties": values });
        }
        let one = self.kind(&field.kind());
        if field.is_list() {
            json!({ "type": "array", "items": one })
        } else {
            one
        }
    }

    /// The JSON type of a field as protobuf writes it. When reading, it accepts 64-bit integers as
    /// numbers, too.
    fn kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Double | Kind::Float => json!({ "type": "number" }),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                json!({ "type": "integer", "minimum": i32::MIN, "maximum": i32::MAX })
            }
            Kind::Uint32 | Kind::Fixed32 => {
                json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
            }
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                json!({ "type": ["string", "integer"], "pattern": INT64, "format": "int64" })
            }
            Kind::Uint64 | Kind::Fixed64 => json!({
                "type": ["string", "integer"], "pattern": UINT64, "minimum": 0, "format": "uint64",
            }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
            Kind::Message(message) => self.message(message),
            Kind::Enum(values) => self.values(values),
        }
    }
}

fn refer(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The comment at a location of a file, as one line.
fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let file = file.file_descriptor_proto();
    let places = file.source_code_info.iter().flat_map(|it| &it.location);
    let place = places.into_iter().find(|place| place.path == path);
    let text = place.and_then(|place| {
        let leading = place.leading_comments.as_deref();
        leading.or(place.trailing_comments.as_deref())
    });
    let words: Vec<_> = text.unwrap_or_default().split_whitespace().collect();
    words.join(" ")
}
