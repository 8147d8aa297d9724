-- The working window of a session: what is known of it beside its messages. Redis holds a copy for a while.

-- One row for a session that has any of it. `version` rises with every change, and is what a copy is compared with.
-- (summary_turn, summary_position) is where the newest summary ends: whoever wants to add one names the place from which
-- it goes on, so that of two that were made side by side only the first is kept.
CREATE TABLE session_windows (
    org_id           text COLLATE "C" NOT NULL,
    session_id       text COLLATE "C" PRIMARY KEY,
    version          bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    summary_turn     integer NOT NULL DEFAULT 0 CHECK (summary_turn >= 0),
    summary_position integer NOT NULL DEFAULT -1 CHECK (summary_position >= -1),
    -- texts by key, which agents keep with the tool `note`
    notes            jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(notes) = 'object'),
    -- the latest large results of tools, oldest first: [{"id", "tool", "bytes", "turn"}]
    results          json NOT NULL DEFAULT '[]' CHECK (json_typeof(results) = 'array'),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE
) WITH (fillfactor = 70);

-- Rolling summaries of the conversation, each of all that was said up to its end. Older ones stay for runs that go on
-- from before.
CREATE TABLE session_summaries (
    org_id        text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    upto_turn     integer NOT NULL CHECK (upto_turn >= 1),
    upto_position integer NOT NULL CHECK (upto_position >= 0),
    text          text NOT NULL CHECK (length(text) <= 40000),
    -- what users said, word for word as far as there is room: [{"turn", "text"}]
    asked         json NOT NULL DEFAULT '[]' CHECK (json_typeof(asked) = 'array'),
    model         text,
    messages      integer NOT NULL CHECK (messages >= 0),
    tokens_before integer NOT NULL CHECK (tokens_before >= 0),
    tokens_after  integer NOT NULL CHECK (tokens_after >= 0),
    input_tokens  bigint NOT NULL DEFAULT 0 CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL DEFAULT 0 CHECK (output_tokens >= 0),
    told_in       integer CHECK (told_in >= 1),  -- the turn whose log says so; NULL where one has said it already
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (session_id, upto_turn, upto_position),
    FOREIGN KEY (org_id, session_id) REFERENCES sessions (org_id, id) ON DELETE CASCADE
);

-- Summaries of what one agent did in the earlier steps of one run, for whoever owns the run next.
CREATE TABLE run_summaries (
    org_id        text COLLATE "C" NOT NULL,
    run_id        text COLLATE "C" NOT NULL,
    path          text NOT NULL,
    upto_position integer NOT NULL CHECK (upto_position >= 0),
    text          text NOT NULL CHECK (length(text) <= 40000),
    model         text,
    created_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, path, upto_position),
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id) ON DELETE CASCADE
);
