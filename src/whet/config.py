"""What a recipe may say, as validated data; recipes.py reads the files."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from whet.errors import did_you_mean
from whet.tables import Critic, Lora, Optimizer, Positive, Rate, Share, Table
from whet.thinking import Switch, Thinking

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Shape(Table):
    """A decoder made from nothing (its vocabulary is the task's alphabet, a character a token)."""

    family: Literal["llama", "qwen2", "qwen3"] = "qwen3"
    hidden: Positive = 96
    layers: Positive = 2
    heads: Positive = 4
    kv_heads: Positive = 4
    ffn: Positive = 224
    max_positions: Positive = 512

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({self.heads}), and heads of kv_heads ({self.kv_heads})"
            )
        return self


class Model(Table):
    """`path`: a Hugging Face directory or Hub id; without one, `shape` is made from nothing.

    `threads` on a CPU; 0: one for models of up to 2 million parameters, whose operations are too small to share, else all.
    """

    path: str | None = None
    shape: Shape = Shape()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0


class Task(BaseModel):
    """`name` as `whet tasks` lists it; every other key is an option of that task, checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Ask(Table):
    """How a problem becomes a prompt: an optional system message, and the template's thinking switch."""

    system: str | None = None
    thinking: Thinking = None


class Reward(BaseModel):
    """One part of the reward: `task` (the task's own verifier), a built-in, or your own `module:function`."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "task"
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Evaluation(Table):
    """How models are measured, on the test split."""

    problems: Positive = 1000
    samples: Positive = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Positive = 128
    seed: int = 0
    thinking: Switch = None


class Gate(Table):
    """What a model must reach before the pipeline goes on: accuracy of the answers given in one mode."""

    mode: str
    accuracy: Share
    above: str | None = None  # another mode whose accuracy must be lower
    every: Positive = 100  # steps between measurements
    samples: Positive = 512
    max_tokens: Positive = 64


class Stage(Table):
    name: Annotated[str, Field(pattern=NAME)]
    start: str = "previous"  # previous | new | a stage's name | a directory or Hub id


class Trained(Stage):
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    micro_tokens: Positive = 16384  # tokens a forward pass


class Makes(Stage):
    """Leaves a policy behind, which is measured."""

    evaluate: bool = True


class Draws(Stage):
    """Samples and scores; with a reward of its own, or the recipe's where none is given."""

    reward: list[Reward] = Field(default_factory=list[Reward])
    temperature: Rate = 1.0
    max_tokens: Positive = 128


class SFT(Trained, Makes):
    kind: Literal["sft"]
    shape: Shape | None = None  # a model of its own, made from nothing
    data: str | dict[str, Share] = "corpus"  # corpus (the task's) | a reject stage's name | the share of each
    mix: dict[str, Share] = Field(default_factory=dict[str, Share])  # share of each mode in the corpus
    steps: Positive
    batch: Positive = 16
    gate: Gate | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shape is not None and self.start not in ("previous", "new"):
            raise ValueError(f"shape makes a new model, so start = {self.start!r} cannot be honoured; drop one")
        if self.lora is not None and (self.shape is not None or self.start == "new"):
            raise ValueError("lora adapts a model that has been trained, and this stage makes a new one; drop one")
        if not sum(self.shares.values()) > 0:
            raise ValueError("data holds no share above 0")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source of data."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(self.data)


class RL(Trained, Makes, Draws):
    kind: Literal["rl"]
    algorithm: str = "dr_grpo"
    override: dict[str, Any] = Field(default_factory=dict[str, Any])  # cells of the algorithm's row
    reference: str = "start"  # what a KL holds the policy to, or the teacher: start | a stage | a directory or Hub id
    critic: Critic | None = None  # the policy's settings where not given
    pool: Positive | None = None  # prompts chosen among, where the row prioritises; where not given all, at most 4096
    steps: Positive
    prompts: Positive = 32
    samples: Positive = 8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    draws: Positive = 3  # most rollouts a step where the algorithm samples dynamically
    max_errors: Share = 0.2  # of a step's scores, above which the run stops
    probe: Annotated[int, Field(ge=0)] = 8  # test problems answered again and again, to be looked at; 0: none
    probe_every: Positive = 10  # steps


class Reject(Draws):
    """Draws samples and keeps the verified ones, as data for a later sft stage."""

    kind: Literal["reject"]
    problems: Positive
    samples: Positive = 1
    per_prompt: Positive = 1
    choose: Literal["first", "shortest"] = "first"


class Rank(Draws):
    """Draws samples and ranks them, as data for a later reward_model or prefer stage.

    by task: its rule, a labeller's noise included; reward: the reward's value; length: each problem's shortest right answer before
    its wrong answers that are longer and its right ones of at least `longer` times the length (Kimi k1.5, arXiv:2501.12599, sec. 2.4).
    """

    kind: Literal["rank"]
    problems: Positive
    samples: Annotated[int, Field(ge=2)] = 4
    by: Literal["task", "reward", "length"] = "task"
    longer: Annotated[float, Field(ge=1)] = 1.5


class RewardModel(Trained):
    """A scalar head on the starting model, trained on ranked responses (InstructGPT, arXiv:2203.02155, eq. 1)."""

    kind: Literal["reward_model"]
    data: str  # a rank stage's name | a JSONL or Parquet file | hf:OWNER/NAME
    steps: Positive
    batch: Positive = 16  # rankings a step
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the prompts whose pairs are for measuring only

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.lora is not None and not self.lora.merge:
            raise ValueError("a reward model's head is no adapter, so it is kept whole; drop lora.merge = false")
        return self


class Prefer(Trained, Makes):
    """Direct preference optimization on ranked responses (DPO, arXiv:2305.18290)."""

    kind: Literal["prefer"]
    data: str
    reference: str = "start"
    beta: Rate = 0.1
    steps: Positive
    batch: Positive = 16


class Merge(Makes):
    """The weighted average of several models' weights."""

    kind: Literal["merge"]
    models: Annotated[dict[str, Share], Field(min_length=2)]  # a stage's name, a directory or Hub id -> its share

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.models.values()) - 1) > 1e-6:
            raise ValueError(f"the shares of models sum to {sum(self.models.values()):g}; they must sum to 1")
        if self.start != "previous":
            raise ValueError("merge starts from the models that it names; drop start")
        return self


class Evaluate(Evaluation):
    name: Annotated[str, Field(pattern=NAME)]
    kind: Literal["evaluate"]
    start: str = "previous"


AnyStage = Annotated[SFT | RL | Reject | Rank | RewardModel | Prefer | Merge | Evaluate, Field(discriminator="kind")]


class Recipe(Table):
    name: Annotated[str, Field(pattern=NAME)]
    about: str = ""
    seed: int = 1
    result: str | None = None  # the stage whose model becomes model/; the last trained one where not given
    model: Model = Model()
    task: Task
    ask: Ask = Ask()
    reward: list[Reward] = Field(default_factory=lambda: [Reward()])
    evaluation: Evaluation = Evaluation()
    stage: Annotated[list[AnyStage], Field(min_length=1)]

    @property
    def trained(self) -> list[str]:
        """The names of the stages that make a policy, in order."""
        return [s.name for s in self.stage if isinstance(s, Makes)]

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        kinds: dict[str, str] = {}
        for stage in self.stage:
            if stage.name in kinds:
                raise ValueError(f"two stages are named {stage.name!r}")
            if stage.name in ("samples", "model", "previous", "new", "corpus"):
                raise ValueError(f"a stage cannot be named {stage.name!r}: the word has a meaning of its own")
            for data in stage.shares if isinstance(stage, SFT) else ():
                if data != "corpus" and kinds.get(data) != "reject":
                    known = did_you_mean(data, ["corpus", *(name for name, kind in kinds.items() if kind == "reject")])
                    raise ValueError(
                        f"stage {stage.name}: data = {data!r} is neither corpus nor an earlier reject stage{known}"
                    )
            kinds[stage.name] = stage.kind
        if self.trained and self.model.dtype != "float32":
            raise ValueError(
                f"model.dtype = {self.model.dtype!r} is for measuring only: in training most updates would round to nothing; use float32"
            )
        if self.result is not None and self.result not in self.trained:
            raise ValueError(f"result = {self.result!r} makes no policy{did_you_mean(self.result, self.trained)}")
        return self
