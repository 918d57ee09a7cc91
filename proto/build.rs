//! Compiles the .proto files with protox, so that `protoc` need not be installed.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=chunkcache");
    let files = [
        "chunkcache/v1/types.proto",
        "chunkcache/v1/cache_service.proto",
        "chunkcache/v1/edge_service.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Replace the files instead of rewriting them: a target directory may be a hard-linked copy of
    // another checkout's.
    for file in fs::read_dir(&out)? {
        fs::remove_file(file?.path())?;
    }
    fs::write(
        out.join("descriptors.bin"),
        prost_for_build::encode(&descriptors),
    )?;
    let mut builder = tonic_prost_build::configure().build_transport(false);
    // The coordinator stores these unchanged, in one document.
    for message in [
        "FreshnessPolicy",
        "OriginConnection",
        "KeyRules",
        "TtlRule",
        "S3Settings",
    ] {
        builder = builder.type_attribute(
            format!(".chunkcache.v1.{message}"),
            "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]",
        );
    }
    builder.compile_fds(descriptors)?;
    Ok(())
}

mod prost_for_build {
    use protox::prost::Message;

    pub fn encode(message: &impl Message) -> Vec<u8> {
        message.encode_to_vec()
    }
}
