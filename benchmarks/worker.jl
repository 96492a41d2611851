# MixedModels.jl on one problem: julia worker.jl folder engine repeats seconds; see worker.py for the protocol.
using MixedModels, LinearAlgebra
using MixedModels.StatsModels: ConstantTerm, term
import JSON

folder, _, repeats, seconds = ARGS
repeats, seconds = parse(Int, repeats), parse(Float64, seconds)
const CHECKED = 10
const SLOW = 30.0
spec = JSON.parsefile(joinpath(folder, "problem.json"))

function raw(name)
    path = joinpath(folder, name * ".f64")
    read!(path, Vector{Float64}(undef, filesize(path) ÷ 8))
end

column(name) = name in spec["factors"] ? MixedModels.PooledArray(string.(Int.(raw(name)))) : raw(name)
data = NamedTuple(Symbol(name) => column(name) for name in spec["columns"])

function formula()
    terms(columns) = sum(c in ("0", "1") ? ConstantTerm(parse(Int, c)) : term(Symbol(c)) for c in columns)
    bars = map(spec["random"]) do t
        columns = first(t["columns"]) == "1" ? t["columns"] : ["0"; t["columns"]]
        terms(columns) | term(Symbol(t["factor"]))
    end
    term(:y) ~ sum([terms(["1"; spec["fixed"]]); bars])
end

grouping = Dict(Symbol(name) => Grouping() for name in spec["factors"])
fit_once() = fit(MixedModel, formula(), data; REML = spec["reml"], contrasts = grouping, progress = false)

# Terms of one factor are one block of effects; each term's rows are picked by name.
function relative(model)
    map(spec["random"]) do t
        i = findfirst(==(Symbol(t["factor"])), fnames(model))
        names = [c == "1" ? "(Intercept)" : c for c in t["columns"]]
        at = [findfirst(==(n), model.reterms[i].cnames) for n in names]
        block = (model.λ[i] * model.λ[i]')[at, at]
        [collect(row) for row in eachrow(block)]
    end
end

function time_fits()
    times, model = Float64[], nothing
    while isempty(times) || (length(times) <= repeats && sum(times[2:end]) < seconds && times[1] < SLOW)
        push!(times, @elapsed model = fit_once())
    end
    Dict("first" => times[1], "times" => times[2:end], "relative" => relative(model))
end

function time_refits()
    responses = reshape(raw("responses"), length(data.y), :)
    kept, done = [], 0
    first_time = @elapsed begin
        model = fit_once()
        refit!(model, responses[:, 1]; progress = false)
    end
    relative(model)  # compiled before the clock runs
    begin_at = time()
    for y in eachcol(responses)
        refit!(model, collect(y); progress = false)
        done += 1
        done <= CHECKED && push!(kept, relative(model))
        time() - begin_at > seconds && break
    end
    Dict("first" => first_time, "times" => [(time() - begin_at) / done], "fits" => done, "relative" => kept)
end

memory(field) = parse(Int, split(only(filter(startswith(field), readlines("/proc/self/status"))))[2]) / 1024

try
    write("/proc/self/clear_refs", "5")  # the peak counts from here
catch
end
base_mb = memory("VmRSS")
BLAS.set_num_threads(parse(Int, get(ENV, "OPENBLAS_NUM_THREADS", "1")))
out = spec["responses"] > 0 ? time_refits() : time_fits()
blas = basename(first(BLAS.get_config().loaded_libs).libname)
versions = Dict("Julia" => string(VERSION), "MixedModels" => string(pkgversion(MixedModels)), "BLAS (Julia)" => blas)
merge!(out, Dict("base_mb" => base_mb, "peak_mb" => memory("VmHWM"), "versions" => versions))
println("\n", JSON.json(out))
