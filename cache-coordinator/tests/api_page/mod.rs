//! Generates `docs/api.md` from the descriptors of the protocol: services with the roles that may
//! call each method, messages, values.

use std::collections::HashMap;
use std::fmt::Write as _;

use cache_coordinator::access::policy::Need;
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, ServiceDescriptorProto, field_descriptor_proto::Type,
};

const PACKAGE: &str = "chunkcache.v1";
/// Positions in a descriptor, in the numbers of `descriptor.proto`.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const FIELDS: i32 = 2;
const NESTED: i32 = 3;
const NESTED_ENUMS: i32 = 4;
const ENTRIES: i32 = 2;

/// The comments of a file, by position.
struct Comments(HashMap<Vec<i32>, String>);

impl Comments {
    fn of(file: &FileDescriptorProto) -> Self {
        let places = file.source_code_info.iter().flat_map(|it| &it.location);
        Self(
            places
                .filter_map(|place| {
                    let text = place
                        .leading_comments
                        .as_ref()
                        .or(place.trailing_comments.as_ref())?;
                    Some((place.path.clone(), text.clone()))
                })
                .collect(),
        )
    }

    /// The comment as one line.
    fn at(&self, path: &[i32]) -> String {
        let text = self.0.get(path).map_or("", String::as_str);
        let words: Vec<_> = text.split_whitespace().collect();
        words.join(" ").replace('|', "\\|")
    }
}

pub fn page(descriptors: &[u8]) -> String {
    let set = FileDescriptorSet::decode(descriptors).unwrap();
    let files: Vec<_> = set
        .file
        .iter()
        .filter(|it| it.package() == PACKAGE)
        .collect();
    let mut page = format!(
        "# The gRPC API\n\nPackage `{PACKAGE}`, written from `proto/chunkcache/v1` (`just \
         reference`); a test compares it with them. What is here stays readable: \
         `tests/deploy/protocol` compares with what was published. A coordinator answers \
         reflection, so that\n\
         `grpcurl` and its like know all of this. Clients that run: `examples/`. Roles: \
         [security](security.md).\n\n\
         The methods of `CacheService` that are no streams are also JSON over HTTP, in the form \
         of [Connect](https://connectrpc.com/docs/protocol), at a\n\
         coordinator's `--http-listen`: `POST /chunkcache.v1.CacheService/METHOD` with a message \
         as protobuf's JSON, at most 1 MiB. Errors have `code`, `message` and\n\
         `details`; the same tokens are wanted. `GET /openapi.json` describes all of it (OpenAPI \
         3.1).\n\n\
         ```sh\n\
         curl -s -d '{{}}' -H 'Content-Type: application/json' \
         http://127.0.0.1:7401/chunkcache.v1.CacheService/ListSources\n\
         ```\n",
    );
    for file in &files {
        let comments = Comments::of(file);
        for (at, service) in (0..).zip(&file.service) {
            describe_service(&mut page, service, &comments, &[SERVICES, at]);
        }
    }
    page.push_str("\n# Messages\n");
    for file in &files {
        let comments = Comments::of(file);
        for (at, message) in (0..).zip(&file.message_type) {
            describe_message(&mut page, "", message, &comments, &[MESSAGES, at]);
        }
        for (at, values) in (0..).zip(&file.enum_type) {
            describe_enum(&mut page, "", values, &comments, &[ENUMS, at]);
        }
    }
    page
}

fn describe_service(
    page: &mut String,
    service: &ServiceDescriptorProto,
    comments: &Comments,
    path: &[i32],
) {
    let name = service.name();
    let _ = writeln!(page, "\n# {name}\n\n{}\n", comments.at(path));
    page.push_str("| call | takes | answers | roles | |\n|---|---|---|---|---|\n");
    for (at, method) in (0..).zip(&service.method) {
        let stream = |streams: bool, message: &str| {
            let shown = link(message);
            if streams {
                format!("stream of {shown}")
            } else {
                shown
            }
        };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            method.name(),
            stream(method.client_streaming(), method.input_type()),
            stream(method.server_streaming(), method.output_type()),
            Need::of_method(&format!("/{PACKAGE}.{name}/{}", method.name())).roles(),
            comments.at(&[path, &[FIELDS, at]].concat()),
        );
    }
}

fn describe_message(
    page: &mut String,
    within: &str,
    message: &DescriptorProto,
    comments: &Comments,
    path: &[i32],
) {
    if message.options.as_ref().is_some_and(|it| it.map_entry()) {
        return;
    }
    let name = format!("{within}{}", message.name());
    let _ = writeln!(page, "\n## {name}\n\n{}", comments.at(path));
    if !message.field.is_empty() {
        page.push_str("\n| field | number | type | |\n|---|---|---|---|\n");
    }
    for (at, field) in (0..).zip(&message.field) {
        let choice = field
            .oneof_index
            .filter(|_| !field.proto3_optional())
            .and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?));
        let mut text = comments.at(&[path, &[FIELDS, at]].concat());
        if let Some(choice) = choice {
            text = format!("One of `{}`. {text}", choice.name());
        }
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} |",
            field.name(),
            field.number(),
            kind(field, message),
            text.trim(),
        );
    }
    let within = format!("{name}.");
    for (at, nested) in (0..).zip(&message.nested_type) {
        let path = [path, &[NESTED, at]].concat();
        describe_message(page, &within, nested, comments, &path);
    }
    for (at, nested) in (0..).zip(&message.enum_type) {
        let path = [path, &[NESTED_ENUMS, at]].concat();
        describe_enum(page, &within, nested, comments, &path);
    }
}

fn describe_enum(
    page: &mut String,
    within: &str,
    values: &EnumDescriptorProto,
    comments: &Comments,
    path: &[i32],
) {
    let _ = writeln!(
        page,
        "\n## {within}{}\n\n{}\n\n| value | number | |\n|---|---|---|",
        values.name(),
        comments.at(path)
    );
    for (at, value) in (0..).zip(&values.value) {
        let text = comments.at(&[path, &[ENTRIES, at]].concat());
        let _ = writeln!(page, "| `{}` | {} | {text} |", value.name(), value.number());
    }
}

/// A field's type for human readers.
fn kind(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let of = |field: &FieldDescriptorProto| match field.r#type() {
        Type::Message | Type::Enum => link(field.type_name()),
        plain => format!("{plain:?}").to_lowercase(),
    };
    let entry = message.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|it| it.map_entry())
            && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    match entry.map(|it| it.field.as_slice()) {
        Some([key, value]) => format!("map from {} to {}", of(key), of(value)),
        _ if field.label() == prost_types::field_descriptor_proto::Label::Repeated => {
            format!("list of {}", of(field))
        }
        _ if field.proto3_optional() => format!("optional {}", of(field)),
        _ => of(field),
    }
}

/// The name, linked to its section if it is of this package.
fn link(full: &str) -> String {
    match full.strip_prefix(&format!(".{PACKAGE}.")) {
        // Anchors are in lower case, without full stops.
        Some(name) => format!("[{name}](#{})", name.to_lowercase().replace('.', "")),
        None => full.trim_start_matches('.').to_owned(),
    }
}
