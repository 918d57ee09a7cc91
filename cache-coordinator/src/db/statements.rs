//! The catalogue of statements: one file each in `queries/`, named here, prepared once per
//! connection.

/// A statement and the name under which its latency is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Statement {
    /// The file's name without `.sql`. It is a metric label, so it never contains data.
    pub name: &'static str,
    pub sql: &'static str,
}

macro_rules! statements {
    ($($constant:ident = $file:literal;)*) => {
        $(
            #[doc = concat!("`queries/", $file, ".sql`")]
            pub const $constant: Statement = Statement {
                name: $file,
                sql: include_str!(concat!("queries/", $file, ".sql")),
            };
        )*
        /// All statements, for tests that prepare each of them against the schema.
        pub const ALL: &[Statement] = &[$($constant),*];
    };
}

statements! {
    BINDING_GET = "binding_get";
    BINDING_OF_ENTRY = "binding_of_entry";
    BINDING_OF_PATH = "binding_of_path";
    CHANGE_INSERT = "change_insert";
    CHANGE_OLDEST = "change_oldest";
    CHANGE_PAGE = "change_page";
    CHANGE_PAGE_OF_ENTRY = "change_page_of_entry";
    CHANGE_PRUNE = "change_prune";
    CHANGE_REVISION = "change_revision";
    CHANGE_REVISION_OF_ENTRY = "change_revision_of_entry";
    CHUNK_CONFLICTS = "chunk_conflicts";
    CHUNK_DELETE_OF_EDGE = "chunk_delete_of_edge";
    CHUNK_DELETE_OF_ENTRY = "chunk_delete_of_entry";
    CHUNK_DELETE_OF_ENTRIES = "chunk_delete_of_entries";
    CHUNK_DELETE_OF_SOURCE = "chunk_delete_of_source";
    CHUNK_DELETE_ON_EDGE = "chunk_delete_on_edge";
    CHUNK_DIGEST = "chunk_digest";
    CHUNK_DIGESTS = "chunk_digests";
    CHUNK_EDGES = "chunk_edges";
    CHUNK_HOLDERS = "chunk_holders";
    CHUNK_HOLDINGS = "chunk_holdings";
    CHUNK_LIST = "chunk_list";
    CHUNK_MISSING = "chunk_missing";
    CHUNK_MISSING_ANYWHERE = "chunk_missing_anywhere";
    CHUNK_RECONCILE_DELETE = "chunk_reconcile_delete";
    CHUNK_RECONCILE_INSERT = "chunk_reconcile_insert";
    CHUNK_REMOVE = "chunk_remove";
    CHUNK_REPORTS = "chunk_reports";
    CHUNK_STORE = "chunk_store";
    EDGE_CHUNK_COUNT = "edge_chunk_count";
    EDGE_DELETE = "edge_delete";
    EDGE_DRAIN = "edge_drain";
    EDGE_EPOCHS = "edge_epochs";
    EDGE_GET = "edge_get";
    EDGE_JOIN = "edge_join";
    EDGE_LIST = "edge_list";
    EDGE_RETIRE = "edge_retire";
    EDGE_SET_STATE = "edge_set_state";
    EDGE_TOUCH = "edge_touch";
    ENTRY_CHUNKLESS_COUNT = "entry_chunkless_count";
    ENTRY_CONFIRM = "entry_confirm";
    ENTRY_DELETE_OF_SOURCE = "entry_delete_of_source";
    ENTRY_FORGET = "entry_forget";
    ENTRY_GET = "entry_get";
    ENTRY_HOT_ON_EDGE = "entry_hot_on_edge";
    ENTRY_INCOMPLETE = "entry_incomplete";
    ENTRY_INVALIDATE = "entry_invalidate";
    ENTRY_INVALIDATED = "entry_invalidated";
    ENTRY_MARK_PURGED = "entry_mark_purged";
    ENTRY_PAGE = "entry_page";
    ENTRY_PAGE_OF_SOURCE = "entry_page_of_source";
    ENTRY_REGISTER = "entry_register";
    ENTRY_SET_PINNED = "entry_set_pinned";
    ENTRY_TOUCH = "entry_touch";
    ENTRY_UNUSED = "entry_unused";
    ENTRY_WITHOUT_CHUNKS = "entry_without_chunks";
    ENTRY_WITH_CHUNKS = "entry_with_chunks";
    JOB_BYTES_ANYWHERE = "job_bytes_anywhere";
    JOB_BYTES_ON_EDGES = "job_bytes_on_edges";
    JOB_END = "job_end";
    JOB_GET = "job_get";
    JOB_INSERT = "job_insert";
    JOB_LIST = "job_list";
    JOBS_NAMED = "jobs_named";
    KEY_BIND = "key_bind";
    KEY_BINDINGS = "key_bindings";
    KEY_DELETE_OF_ENTRIES = "key_delete_of_entries";
    KEY_DELETE_OF_ENTRY = "key_delete_of_entry";
    LEASE_ACQUIRE = "lease_acquire";
    LEASE_CHECK = "lease_check";
    LEASE_READ = "lease_read";
    LEASE_RELEASE = "lease_release";
    LEASE_RENEW = "lease_renew";
    PURGE_BY_PATH = "purge_by_path";
    PURGE_BY_TAG = "purge_by_tag";
    PURGE_FINISH = "purge_finish";
    PURGE_LIST = "purge_list";
    PURGE_PENDING = "purge_pending";
    PURGE_PRUNE = "purge_prune";
    PURGE_RECORD = "purge_record";
    SCHEMA_APPLIED = "schema_applied";
    SCHEMA_EXISTS = "schema_exists";
    SCHEMA_LOCK = "schema_lock";
    SCHEMA_RECORD = "schema_record";
    SCHEMA_TABLE = "schema_table";
    SECRET_GET = "secret_get";
    SECRET_INSERT = "secret_insert";
    SESSION_ENCRYPTED = "session_encrypted";
    SESSION_SETTING = "session_setting";
    SOURCE_DELETE = "source_delete";
    SOURCE_GET = "source_get";
    SOURCE_LIST = "source_list";
    SOURCE_NAMES = "source_names";
    SOURCE_PUT = "source_put";
    TOTALS = "totals";
}
