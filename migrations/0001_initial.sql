-- The tables of the chunk cache. Forward only; applied in order by the coordinator, each in one transaction.
-- All ends of ranges are exclusive. All sizes and offsets are bytes.

CREATE TABLE sources (
    name            text PRIMARY KEY,
    base_url        text NOT NULL,
    -- The rest of the settings as one document: they are read whole, never searched.
    settings        jsonb NOT NULL DEFAULT '{}',
    revision        bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE sources IS 'Registered origins. No request ever goes to a host that is not here.';

CREATE TABLE cache_entries (
    id              uuid PRIMARY KEY,
    source          text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    path            text NOT NULL,
    query           text NOT NULL DEFAULT '',
    variant         text NOT NULL DEFAULT '',
    validator       text NOT NULL,
    etag            text NOT NULL DEFAULT '',
    last_modified   text NOT NULL DEFAULT '',
    content_type    text NOT NULL DEFAULT '',
    size            bigint NOT NULL CHECK (size >= 0),
    chunk_size      integer NOT NULL CHECK (chunk_size >= 65536 AND chunk_size <= 67108864),
    pinned          boolean NOT NULL DEFAULT false,
    created_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cache_entries IS 'One object of one source at one validator. Immutable but for pinned.';
COMMENT ON COLUMN cache_entries.id IS 'Derived from source, base URL, key, validator, size and chunk size (proto/src/identity.rs).';
COMMENT ON COLUMN cache_entries.validator IS 'In clear: the strong ETag with its quotes, else Last-Modified/size.';
COMMENT ON COLUMN cache_entries.size IS 'Bytes in the object.';
-- Listing by source and path; finding the entries of a path to invalidate.
CREATE INDEX cache_entries_by_path ON cache_entries (source, path, query);

CREATE TABLE cache_keys (
    source          text NOT NULL REFERENCES sources (name) ON DELETE CASCADE,
    path            text NOT NULL,
    query           text NOT NULL DEFAULT '',
    variant         text NOT NULL DEFAULT '',
    -- The present entry of the key.
    entry_id        uuid NOT NULL REFERENCES cache_entries (id) ON DELETE CASCADE,
    validated_at    timestamptz NOT NULL,
    fresh_until     timestamptz NOT NULL,
    initial_age     integer NOT NULL DEFAULT 0,
    cache_control   text NOT NULL DEFAULT '',
    vary            text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (source, path, query, variant)
);
COMMENT ON TABLE cache_keys IS 'What a client names (source, path, query, variant) and the entry it points to now.';
-- The cascade from cache_entries, and "which key points to this entry".
CREATE INDEX cache_keys_by_entry ON cache_keys (entry_id);

CREATE TABLE edges (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL UNIQUE,
    state           text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'draining', 'suspect', 'lost')),
    url             text NOT NULL,
    store_id        uuid NOT NULL,
    epoch           bigint NOT NULL DEFAULT 1,
    draining        boolean NOT NULL DEFAULT false,
    bytes_used      bigint NOT NULL DEFAULT 0,
    bytes_allowed   bigint NOT NULL DEFAULT 0,
    first_seen      timestamptz NOT NULL DEFAULT now(),
    last_seen       timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN edges.store_id IS 'Of the data directory. When another one comes under the same name, the old rows go.';
COMMENT ON COLUMN edges.epoch IS 'Of the present session. A report from an older epoch changes nothing.';
COMMENT ON COLUMN edges.draining IS 'What the operator wants; state is what is seen.';

CREATE TABLE cache_chunks (
    entry_id        uuid NOT NULL REFERENCES cache_entries (id),
    edge_id         integer NOT NULL REFERENCES edges (id),
    start_byte      bigint NOT NULL,
    end_byte        bigint NOT NULL,
    checksum        bigint NOT NULL,
    stored_at       timestamptz NOT NULL DEFAULT now(),
    -- Entry first: every question about a range names the entry, many edges may hold it.
    PRIMARY KEY (entry_id, edge_id, start_byte),
    CHECK (start_byte >= 0 AND end_byte > start_byte)
);
COMMENT ON TABLE cache_chunks IS 'The one truth: this edge durably holds these bytes of this entry.';
COMMENT ON COLUMN cache_chunks.start_byte IS 'First byte of the chunk in the object, inclusive.';
COMMENT ON COLUMN cache_chunks.end_byte IS 'One past the last byte of the chunk, exclusive.';
COMMENT ON COLUMN cache_chunks.checksum IS 'XXH3-64 of the bytes, seeded with start_byte, as a signed 64-bit number.';
-- Reconciliation and removal of one edge. Two short columns with few distinct values: deduplicated by the B-tree.
CREATE INDEX cache_chunks_by_edge ON cache_chunks (edge_id, entry_id);
-- Insert-mostly: tell the planner and the visibility map early.
ALTER TABLE cache_chunks SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);

CREATE TABLE cache_changes (
    revision        bigint PRIMARY KEY,
    entry_id        uuid,
    edge            text,
    kind            text NOT NULL CHECK (kind IN ('stored', 'removed', 'entry', 'key', 'edge', 'source', 'job')),
    -- Of 'stored' and 'removed': first bytes and exclusive ends, coalesced, ascending.
    starts          bigint[] NOT NULL DEFAULT '{}',
    ends            bigint[] NOT NULL DEFAULT '{}',
    -- Of the other kinds: the name or id that changed.
    subject         text NOT NULL DEFAULT '',
    changed_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cache_changes IS 'What changed, written in the transaction that changed it; watches resume from a revision. Pruned by age and count.';
CREATE INDEX cache_changes_by_entry ON cache_changes (entry_id, revision) WHERE entry_id IS NOT NULL;
CREATE INDEX cache_changes_by_age ON cache_changes (changed_at);

CREATE TABLE precache_jobs (
    id              uuid PRIMARY KEY,
    entry_id        uuid NOT NULL REFERENCES cache_entries (id) ON DELETE CASCADE,
    starts          bigint[] NOT NULL,
    ends            bigint[] NOT NULL,
    edges           text[] NOT NULL,
    priority        smallint NOT NULL DEFAULT 3 CHECK (priority BETWEEN 1 AND 4),
    state           text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'done', 'cancelled', 'failed')),
    error           text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz
);
COMMENT ON TABLE precache_jobs IS 'Durable requests. Progress is not stored: it is what cache_chunks says of the ranges.';
CREATE INDEX precache_jobs_running ON precache_jobs (created_at) WHERE state = 'running';

CREATE TABLE coordinator_lease (
    "only"          boolean PRIMARY KEY DEFAULT true CHECK ("only"),
    holder          uuid NOT NULL,
    address         text NOT NULL,
    term            bigint NOT NULL,
    expires_at      timestamptz NOT NULL
);
COMMENT ON TABLE coordinator_lease IS 'Who leads. Changed by compare-and-set; every write of a leader checks its term, so a paused old leader is harmless.';

CREATE TABLE cluster_secrets (
    name            text PRIMARY KEY,
    value           bytea NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE cluster_secrets IS 'Keys edges authenticate to each other with. Made by the coordinator, given to edges in their session.';
